// Registration of ops under the package's own namespace: file stem, metadata id and namespace are
// one name.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "kernels/common/new_tensor.h"

// The macros paste their argument, so TORCH_EXTENSION_NAME needs one more expansion.
#define GRAFT_OPS(ops) GRAFT_OPS_EXPAND_(TORCH_EXTENSION_NAME, ops)
#define GRAFT_OPS_EXPAND_(name, ops) STABLE_TORCH_LIBRARY(name, ops)
#define GRAFT_OPS_IMPL(key, ops) GRAFT_OPS_IMPL_EXPAND_(TORCH_EXTENSION_NAME, key, ops)
#define GRAFT_OPS_IMPL_EXPAND_(name, key, ops) STABLE_TORCH_LIBRARY_IMPL(name, key, ops)

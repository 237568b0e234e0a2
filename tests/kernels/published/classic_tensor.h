// Registration with the classic ABI, as most published kernels have it.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

// The macros paste their argument, so TORCH_EXTENSION_NAME needs one more expansion.
#define CLASSIC_OPS(ops) CLASSIC_OPS_EXPAND_(TORCH_EXTENSION_NAME, ops)
#define CLASSIC_OPS_EXPAND_(name, ops) TORCH_LIBRARY(name, ops)
#define CLASSIC_OPS_IMPL(key, ops) CLASSIC_OPS_IMPL_EXPAND_(TORCH_EXTENSION_NAME, key, ops)
#define CLASSIC_OPS_IMPL_EXPAND_(name, key, ops) TORCH_LIBRARY_IMPL(name, key, ops)

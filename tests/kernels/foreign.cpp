// Registers one op under its own id and one under another namespace.

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

GRAFT_OPS(ops) { ops.def("own(Tensor x) -> ()"); }
STABLE_TORCH_LIBRARY(graft_test_foreign, ops) { ops.def("other(Tensor x) -> ()"); }

// Registers its op under another namespace than the id in metadata.json.

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

STABLE_TORCH_LIBRARY(graft_test_elsewhere, ops) { ops.def("nothing(Tensor x) -> ()"); }

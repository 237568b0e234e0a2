// One op in a library that is bound at once (`-z now`), as hardened builds are: dlopen() must
// resolve the CPython symbol that PyInit_<id> uses.

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

namespace {

void copy(const torch::stable::Tensor& out, const torch::stable::Tensor& input) {
  torch::stable::Tensor target = out;
  torch::stable::copy_(target, input);
}

}  // namespace

GRAFT_OPS(ops) { ops.def("copy(Tensor! out, Tensor input) -> ()"); }

GRAFT_OPS_IMPL(CPU, ops) { ops.impl("copy", TORCH_BOX(&copy)); }

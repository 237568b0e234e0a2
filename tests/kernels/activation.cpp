// Ops under the names and schemas of kernels-community/activation, in a package without
// layers.json.

#include <cmath>
#include <cstdint>

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

namespace {

void silu(const torch::stable::Tensor& out, const torch::stable::Tensor& input) {
  const auto* x = static_cast<const float*>(input.const_data_ptr());
  auto* y = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < input.numel(); ++i) {
    y[i] = static_cast<float>(x[i] / (1.0 + std::exp(-static_cast<double>(x[i]))));
  }
}

}  // namespace

GRAFT_OPS(ops) {
  ops.def("silu(Tensor! out, Tensor input) -> ()");
  ops.def("silu_and_mul(Tensor! out, Tensor input) -> ()");
}

GRAFT_OPS_IMPL(CPU, ops) { ops.impl("silu", TORCH_BOX(&silu)); }

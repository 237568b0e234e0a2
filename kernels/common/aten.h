// Matrix products that packages take from ATen, through the dispatcher of the stable ABI.
#pragma once

#include <array>
#include <optional>

#include "kernels/common/registration.h"

namespace graft_kernels {

// x weight^T + bias, as aten::linear.
inline torch::stable::Tensor aten_linear(const torch::stable::Tensor& x,
                                         const torch::stable::Tensor& weight,
                                         const std::optional<torch::stable::Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

// out = a b, all matrices, written where it belongs.
inline void aten_product(torch::stable::Tensor& out, const torch::stable::Tensor& a,
                         const torch::stable::Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  // The answer is `out` again: take it off the stack.
  torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

inline torch::stable::Tensor transposed(const torch::stable::Tensor& tensor) {
  torch::stable::Tensor matrix = tensor;
  return torch::stable::transpose(matrix, 0, 1);
}

}  // namespace graft_kernels

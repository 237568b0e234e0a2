// The matrix products that the linear forms take from ATen, written where they belong.
#pragma once

#include <array>

#include "kernels/common/registration.h"

namespace graft_kernels::loss {

using torch::stable::Tensor;

// out = a b
inline void product(Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the answer is `out` again: take it off the stack
}

inline Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t count) {
  Tensor whole = tensor;
  return torch::stable::narrow(whole, 0, begin, count);
}

inline Tensor transposed(const Tensor& tensor) {
  Tensor matrix = tensor;
  return torch::stable::transpose(matrix, 0, 1);
}

// The sum over the rows of a matrix, in float32.
inline Tensor column_sums(const Tensor& matrix) {
  const std::array<int64_t, 1> dims{0};
  return torch::stable::sum(matrix,
                            torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), dims.size()),
                            false, torch::headeronly::ScalarType::Float);
}

}  // namespace graft_kernels::loss

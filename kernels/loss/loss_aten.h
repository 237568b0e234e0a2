// The matrix products that the linear forms take from ATen, written where they belong.
#pragma once

#include <array>

#include "kernels/common/aten.h"

namespace graft_kernels::loss {

using torch::stable::Tensor;

inline Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t count) {
  Tensor whole = tensor;
  return torch::stable::narrow(whole, 0, begin, count);
}

// The sum over the rows of a matrix, in float32.
inline Tensor column_sums(const Tensor& matrix) {
  const std::array<int64_t, 1> dims{0};
  return torch::stable::sum(matrix,
                            torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), dims.size()),
                            false, torch::headeronly::ScalarType::Float);
}

}  // namespace graft_kernels::loss

// The check of add_rows_, which adds the gradient of an embedding to that of a head that has the same weight.
#pragma once

#include "kernels/common/tensor_checks.h"

namespace graft_kernels::loss {

// sums   [V, H], float32, bfloat16, float16, contiguous; rows  [T, H], contiguous, of its dtype
// ids    [T], int64, contiguous, sorted: row order[i] of `rows` is added to row ids[i] of `sums`
// order  [T], int64, contiguous: each of [0, T) once
// Throws std::runtime_error `[add_rows_] argument: expected …, got …`.
inline void check_added_rows(const torch::stable::Tensor& sums, const torch::stable::Tensor& rows,
                             const torch::stable::Tensor& ids, const torch::stable::Tensor& order) {
  const char* op = "add_rows_";
  check_floating(op, {"sums", sums});
  for (const NamedTensor& matrix : {NamedTensor{"sums", sums}, NamedTensor{"rows", rows}}) {
    if (matrix.tensor.dim() != 2) {
      fail(op, matrix.name, "two dimensions", shape_text(matrix.tensor));
    }
    if (!matrix.tensor.is_contiguous()) {
      fail(op, matrix.name, "contiguous memory", "strides");
    }
  }
  check_dtype(op, {"rows", rows}, sums.scalar_type(), "that of sums");
  check_same_device(op, {"rows", rows}, {"sums", sums});
  if (rows.size(1) != sums.size(1)) {
    fail(op, "rows", "rows of " + std::to_string(sums.size(1)), shape_text(rows));
  }
  for (const NamedTensor& list : {NamedTensor{"ids", ids}, NamedTensor{"order", order}}) {
    if (list.tensor.dim() != 1 || list.tensor.size(0) != rows.size(0)) {
      fail(op, list.name, "shape [" + std::to_string(rows.size(0)) + "]", shape_text(list.tensor));
    }
    check_dtype(op, list, torch::headeronly::ScalarType::Long, "int64");
    check_same_device(op, list, {"sums", sums});
    if (!list.tensor.is_contiguous()) {
      fail(op, list.name, "contiguous memory", "strides");
    }
  }
}

}  // namespace graft_kernels::loss

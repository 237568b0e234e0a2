// The check of scale_gradient_, which multiplies a gradient in place.
#pragma once

#include "kernels/common/tensor_checks.h"

namespace graft_kernels::loss {

// gradient  any shape, float32, bfloat16, float16, contiguous; factor  one float32 beside it.
// Throws std::runtime_error `[scale_gradient_] argument: expected …, got …`.
inline void check_scale(const torch::stable::Tensor& gradient,
                        const torch::stable::Tensor& factor) {
  const char* op = "scale_gradient_";
  check_floating(op, {"gradient", gradient});
  if (!gradient.is_contiguous()) {
    fail(op, "gradient", "contiguous memory", "strides");
  }
  if (factor.numel() != 1 || factor.scalar_type() != torch::headeronly::ScalarType::Float) {
    fail(op, "factor", "one float32", shape_text(factor));
  }
  check_same_device(op, {"factor", factor}, {"gradient", gradient});
}

}  // namespace graft_kernels::loss

// What a row's RMSNorm is made of, for *_simd.cpp of this package and of others that norm rows on the way (see
// common/simd.h).
#pragma once

#include <math.h>

#include "kernels/rms-norm/rms_norm.h"
#include "kernels/rms-norm/rows_simd.h"

namespace graft_kernels::GRAFT_ISA {

// 1 / sqrt(mean(x^2) + eps)
template <typename X>
static inline float inverse_rms(const X* x, int64_t columns, float eps) {
  const float squares = sum_over_row(columns, [&](int64_t column, int64_t count) {
    const Float element = load_some<X>(x + column, count);
    return element * element;
  });
  return 1.0F / sqrtf(squares / static_cast<float>(columns) + eps);
}

// element * inverse, scaled by the weight as the numeric variant has it; the caller rounds the result. X is the dtype
// of the elements.
template <rms_norm::Variant kVariant, typename X>
static inline Float scale_norm(Float element, Float inverse, Float weight) {
  const Float norm = element * inverse;
  if constexpr (kVariant == rms_norm::Variant::kCastBeforeWeight) {
    return weight * round_to<X>(norm);
  } else if constexpr (kVariant == rms_norm::Variant::kZeroCentered) {
    return norm * (splat(1.0F) + weight);
  } else {
    return weight * norm;
  }
}

}  // namespace graft_kernels::GRAFT_ISA

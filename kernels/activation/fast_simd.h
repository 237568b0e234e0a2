// SiLU, the logistic function and GELU where the instruction set has reciprocals and powers of two of its own (AVX-512):
// no division, which takes as long as all the rest, and one polynomial for all of erf. Results differ from those of
// simd_math.h by a unit in the last place or two. Included by *_simd.cpp alone (see common/simd.h).
#pragma once

#include "kernels/common/simd_math.h"

namespace graft_kernels::GRAFT_ISA {

#if defined(__AVX512F__)

// For x from -104 to 89, and NaN.
static inline Float exp_in_range(Float x) {
  const Float count = (Float)_mm512_roundscale_ps((__m512)(x * splat(1.44269504F)),
                                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (Float)_mm512_scalef_ps((__m512)exp_of_rest(x, count), (__m512)count);
}

// x / (1 + exp(-z)), rounded as a division is. A reciprocal of 14 bits and one Newton step make a float's, which the rest
// of the division then corrects. The quarter keeps reciprocals of the largest denominators normal; that of infinity is 0.
static inline Float times_logistic(Float x, Float z) {
  // vminps and vmaxps give their second operand where one is NaN.
  const __m512 below = _mm512_min_ps(_mm512_set1_ps(89.0F), (__m512)-z);
  const Float power = exp_in_range((Float)_mm512_max_ps(_mm512_set1_ps(-104.0F), below));
  const Float denominator = splat(1.0F) + power, quarter = denominator * splat(0.25F);
  const Float guess = (Float)_mm512_rcp14_ps((__m512)quarter);
  const Float missing =
      (Float)_mm512_fnmadd_ps((__m512)quarter, (__m512)guess, (__m512)splat(1.0F));
  const __mmask16 is_finite =
      _mm512_cmp_ps_mask((__m512)denominator, _mm512_set1_ps(__builtin_inff()), _CMP_NEQ_UQ);
  const Float reciprocal = (Float)_mm512_maskz_mul_ps(
      is_finite, (__m512)multiply_add(guess, missing, guess), _mm512_set1_ps(0.25F));
  const Float share = x * reciprocal;
  const __m512 rest = _mm512_fnmadd_ps((__m512)denominator, (__m512)share, (__m512)x);
  // None of infinity, where it is NaN, and of zero, which would lose its sign.
  const __mmask16 has_rest = _mm512_cmp_ps_mask(rest, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  return (Float)_mm512_mask3_fmadd_ps(rest, (__m512)reciprocal, (__m512)share, has_rest);
}

static inline Float fast_logistic(Float x) { return times_logistic(splat(1.0F), x); }
static inline Float fast_silu(Float x) { return times_logistic(x, x); }

// erf(y) = 1 - exp(p(|y|)), with p = ln(1 - erf) fitted so that erf is off by at most 9e-8 near zero, where a GELU adds
// one to it, and by less in proportion to 1 - erf further out. From 4 on it is 1 to the last bit.
static inline Float fast_gelu(Float x) {
  const Float y = x * splat(kSqrtHalf);
  const Float size =
      (Float)_mm512_min_ps(_mm512_set1_ps(4.0F), (__m512)absolute(y));  // NaN stays NaN
  Float poly = splat(2.10456369e-6F);
  poly = multiply_add(poly, size, splat(-3.76687749e-5F));
  poly = multiply_add(poly, size, splat(2.65583600e-4F));
  poly = multiply_add(poly, size, splat(-7.75612250e-4F));
  poly = multiply_add(poly, size, splat(-1.06508005e-3F));
  poly = multiply_add(poly, size, splat(2.01035999e-2F));
  poly = multiply_add(poly, size, splat(-1.03169560e-1F));
  poly = multiply_add(poly, size, splat(-6.36544883e-1F));
  poly = multiply_add(poly, size, splat(-1.12838376F));
  const Float erf = copy_sign(splat(1.0F) - exp_in_range(poly * size), y);
  return x * splat(0.5F) * (splat(1.0F) + erf);
}

#else

static inline Float fast_logistic(Float x) { return logistic(x); }
static inline Float fast_silu(Float x) { return silu(x); }
static inline Float fast_gelu(Float x) { return gelu(x); }

#endif

}  // namespace graft_kernels::GRAFT_ISA

// exp, tanh, erf and the logistic function on float vectors of one instruction set: at most 2 units
// in the last place from the exact value; and the activations that several packages have. Included by
// *_simd.cpp alone (see simd.h).
#pragma once

#include "kernels/common/activation_constants.h"
#include "kernels/common/simd.h"

namespace graft_kernels::GRAFT_ISA {

// 2^exponent for integers in [-252, 254], in two factors so that results may be denormal or
// infinite.
static inline Float scale_by_power(Float value, Int exponent) {
  const Int half = exponent >> 1;
  const Float first = (Float)((half + 127) << 23);
  const Float second = (Float)((exponent - half + 127) << 23);
  return value * first * second;
}

// e^(x - count ln 2) for a count next to x / ln 2.
static inline Float exp_of_rest(Float x, Float count) {
  // ln 2 in two parts: the first has trailing zeros, so that its product is exact.
  Float rest = multiply_add(count, splat(-0.693359375F), x);
  rest = multiply_add(count, splat(2.12194440e-4F), rest);
  Float poly = splat(1.9875691500e-4F);
  poly = multiply_add(poly, rest, splat(1.3981999507e-3F));
  poly = multiply_add(poly, rest, splat(8.3334519073e-3F));
  poly = multiply_add(poly, rest, splat(4.1665795894e-2F));
  poly = multiply_add(poly, rest, splat(1.6666665459e-1F));
  poly = multiply_add(poly, rest, splat(5.0000001201e-1F));
  poly = multiply_add(poly, rest * rest, rest);
  return poly + splat(1.0F);
}

static inline Float exp(Float x) {
  // Beyond these the result is zero or infinite anyway; NaN passes both comparisons.
  x = select(x < splat(-104.0F), splat(-104.0F), x);
  x = select(x > splat(89.0F), splat(89.0F), x);
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const Float magic = splat(12582912.0F);
  const Float count = (x * splat(1.44269504F) + magic) - magic;
  const Int exponent = __builtin_convertvector(select(x != x, Float{}, count), Int);
  return scale_by_power(exp_of_rest(x, count), exponent);
}

static inline Float logistic(Float x) { return splat(1.0F) / (splat(1.0F) + exp(-x)); }

static inline Float tanh(Float x) {
  const Float size = absolute(x);
  const Float square = x * x;
  Float poly = splat(-5.70498872745e-3F);
  poly = multiply_add(poly, square, splat(2.06390887954e-2F));
  poly = multiply_add(poly, square, splat(-5.37397155531e-2F));
  poly = multiply_add(poly, square, splat(1.33314422036e-1F));
  poly = multiply_add(poly, square, splat(-3.33332819422e-1F));
  const Float near_zero = multiply_add(poly * square, x, x);
  // ATen's tanh is 1 from 8.6643397 on; the last step before it is worth a bit in the tail of
  // gelu_tanh.
  Float far = splat(1.0F) - splat(2.0F) / (exp(size + size) + splat(1.0F));
  far = select(size > splat(8.664339742F), splat(1.0F), far);
  return select(size < splat(0.625F), near_zero, copy_sign(far, x));
}

static inline Float erf(Float x) {
  const Float size = absolute(x);
  const Float square = x * x;
  Float inner = splat(-5.96761703e-4F);
  inner = multiply_add(inner, square, splat(4.99119423e-3F));
  inner = multiply_add(inner, square, splat(-2.67681349e-2F));
  inner = multiply_add(inner, square, splat(1.12819925e-1F));
  inner = multiply_add(inner, square, splat(-3.76125336e-1F));
  inner = multiply_add(inner, square, splat(1.28379166e-1F));
  inner = multiply_add(inner, x, x);
  Float outer = multiply_add(splat(-1.72853470e-5F), size, splat(3.83197126e-4F));
  const Float low = multiply_add(splat(-3.88396438e-3F), size, splat(2.42546219e-2F));
  outer = multiply_add(outer, square, low);
  outer = multiply_add(outer, size, splat(-1.06777877e-1F));
  outer = multiply_add(outer, size, splat(-6.34846687e-1F));
  outer = multiply_add(outer, size, splat(-1.28717512e-1F));
  outer = multiply_add(outer, size, -size);
  // Far out the square overflows into NaN; erf is 1 to the last bit from 4 on.
  outer = copy_sign(splat(1.0F) - exp(outer), x);
  outer = select(size > splat(4.0F), copy_sign(splat(1.0F), x), outer);
  return select(size > splat(0.927734375F), outer, inner);
}

static inline Float silu(Float x) { return x / (splat(1.0F) + exp(-x)); }

static inline Float gelu(Float x) {
  return x * splat(0.5F) * (splat(1.0F) + erf(x * splat(kSqrtHalf)));
}

static inline Float gelu_tanh(Float x) {
  const Float cube = x * x * x;
  const Float inner = splat(kSqrtTwoOverPi) * multiply_add(splat(kCubic), cube, x);
  return splat(0.5F) * x * (splat(1.0F) + tanh(inner));
}

}  // namespace graft_kernels::GRAFT_ISA

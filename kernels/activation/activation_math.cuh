// The functions themselves, on values of one storage type. Device code, no Torch.
//
// The bits are those of eager PyTorch on the same device. In float32 that follows from the same
// expression compiled the same way. The 16-bit types get forms with fewer instructions (a plain
// division and tanhf alone would keep these kernels below the memory's speed); each is equal by
// argument, and the tests compare all 65,536 inputs:
//   division  one Newton step and a residual give the correctly rounded quotient without special
//             cases; vectors with an element outside the ordinary range take the plain expression
//   tanh      1 - 2 / (exp(2|y|) + 1) is what tanhf computes from |y| = 0.6 on, to the last bit;
//             below, its absolute error of 3e-7 cannot move the rounding to bfloat16 of what follows
//   erf       1 - 2^(t P(t)) of one polynomial for all t = |x|, for bfloat16: what matters is 1 + erf, whose steps in
//             float32 near -1 are the same, and elsewhere its error of 1.2e-6 moves no rounding (checked over all values)
//   steps     products and sums of two 16-bit values round once either way: packed instructions
//             serve
#pragma once

#include <type_traits>

#include "kernels/activation/activation_constants.h"
#include "kernels/common/vec.cuh"

namespace graft_kernels::activation {

// ---- float, the plain expressions

template <Function kFunction>
__device__ __forceinline__ float fused(float x) {
  if constexpr (kFunction == Function::kSilu) {
    return x / (1.0F + expf(-x));
  } else if constexpr (kFunction == Function::kGelu) {
    return x * 0.5F * (1.0F + erff(x * kSqrtHalf));
  } else {
    const float cube = x * x * x;
    const float inner = kSqrtTwoOverPi * (x + kCubic * cube);
    return 0.5F * x * (1.0F + tanhf(inner));
  }
}

// Each step rounded to T, as separate eager operations leave it. __fmul_rn and __fadd_rn never
// fuse.
template <Function kFunction, typename T>
__device__ __forceinline__ float unfused(float x) {
  if constexpr (kFunction == Function::kGeluNew) {
    const float cube = round_to<T>(__fmul_rn(round_to<T>(__fmul_rn(x, x)), x));
    const float sum = round_to<T>(__fadd_rn(x, round_to<T>(__fmul_rn(cube, kCubic))));
    const float angle = round_to<T>(tanhf(round_to<T>(__fmul_rn(sum, kSqrtTwoOverPi))));
    return __fmul_rn(round_to<T>(__fmul_rn(x, 0.5F)), round_to<T>(__fadd_rn(angle, 1.0F)));
  } else if constexpr (kFunction == Function::kGeluFast) {
    const float scaled = round_to<T>(__fmul_rn(x, kFastScale));
    const float cubic = round_to<T>(__fmul_rn(round_to<T>(__fmul_rn(x, kCubic)), x));
    const float angle =
        round_to<T>(tanhf(round_to<T>(__fmul_rn(scaled, round_to<T>(__fadd_rn(cubic, 1.0F))))));
    return __fmul_rn(round_to<T>(__fmul_rn(x, 0.5F)), round_to<T>(__fadd_rn(angle, 1.0F)));
  } else {
    const float angle = round_to<T>(__fmul_rn(x, kQuickScale));
    return __fmul_rn(x, round_to<T>(1.0F / (1.0F + expf(-angle))));
  }
}

template <Function kFunction, typename T>
__device__ __forceinline__ float apply(float x) {
  if constexpr (kFunction == Function::kSilu || kFunction == Function::kGelu ||
                kFunction == Function::kGeluTanh) {
    return fused<kFunction>(x);
  } else {
    return unfused<kFunction, T>(x);
  }
}

// ---- pairs of 16-bit values

__device__ __forceinline__ float reciprocal_approximate(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float power_of_two_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Correctly rounded numerator / denominator for denominators in [1, 2^126) and quotients that are
// normal.
__device__ __forceinline__ float divide_ordinary(float numerator, float denominator) {
  float inverse = reciprocal_approximate(denominator);
  inverse = fmaf(fmaf(-denominator, inverse, 1.0F), inverse, inverse);
  const float quotient = __fmul_rn(numerator, inverse);
  return fmaf(fmaf(-denominator, quotient, numerator), inverse, quotient);
}

// tanh with an absolute error of 3e-7; equal to tanhf from |y| = 0.6 on, and exact near zero.
__device__ __forceinline__ float tanh_one_path(float y) {
  const float power = power_of_two_approximate(__fmul_rn(fabsf(y), 2.885390043F));
  const float size = fmaf(reciprocal_approximate(power + 1.0F), -2.0F, 1.0F);
  const float far = copysignf(size, y);
  return fabsf(y) < 1e-6F ? y : far;
}

template <typename T>
using Pair = Packed<T>;

template <typename T>
__device__ __forceinline__ Pair<T> constant_pair(float value) {
  return from_floats<T>(make_float2(value, value));
}
// fn on both halves, in float, rounded to T.
template <typename T, typename Fn>
__device__ __forceinline__ Pair<T> map_pair(Pair<T> pair, const Fn& fn) {
  const float2 values = to_floats(pair);
  return from_floats<T>(make_float2(fn(values.x), fn(values.y)));
}

// The largest |x| for which the short forms hold.
template <Function kFunction>
inline constexpr float kOrdinary = kFunction == Function::kGeluQuick ? 40.0F : 80.0F;

// Whether the short form needs ordinary arguments at all: those that divide.
template <Function kFunction>
inline constexpr bool kDivides = kFunction == Function::kSilu || kFunction == Function::kGeluQuick;

// False for NaN too.
template <Function kFunction, typename T>
__device__ __forceinline__ bool is_ordinary(Pair<T> pair) {
  const Pair<T> bound = constant_pair<T>(kOrdinary<kFunction>);
  return __hble2(__habs2(pair), bound);
}

// tanh whose result is rounded to T and then added to 1: for bfloat16 an absolute error of 3e-7
// anywhere is too small to move that sum (checked over all values).
template <typename T>
__device__ __forceinline__ float tanh_in_steps(float y) {
  if constexpr (std::is_same_v<T, Bf16>) {
    const float power = power_of_two_approximate(__fmul_rn(y, 2.885390043F));
    return fmaf(reciprocal_approximate(power + 1.0F), -2.0F, 1.0F);
  } else {
    return tanhf(y);
  }
}

template <typename T>
__device__ __forceinline__ float tanh_at_once(float y) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return tanh_one_path(y);
  } else {
    return tanhf(y);
  }
}

// gelu by erf, rounded to bfloat16 afterwards, at half the instructions of erff, which has a polynomial for each of two
// ranges. 2^(t P(t)) is erfc(t / sqrt(2)) to 1.2e-6 up to t = 5.6, and below what a sum with one keeps beyond. In the
// tail P follows erff's own polynomial rather than the exact function: there the last bits of erff are all that is left.
__device__ __forceinline__ float gelu_one_path(float x) {
  constexpr float kPowers[] = {-1.1511430740356445F,   -0.4589371383190155F,
                               -0.053147319704294205F, 0.007797580678015947F,
                               -5.737481405958533e-4F, -4.58524955320172e-5F,
                               1.6543053789064288e-5F, -1.373677832816611e-6F};
  const float t = fabsf(x);
  float power = kPowers[7];
#pragma unroll
  for (int i = 6; i >= 0; --i) {
    power = fmaf(power, t, kPowers[i]);
  }
  // Halved throughout, which changes no rounding.
  const float size = fmaf(power_of_two_approximate(__fmul_rn(power, t)), -0.5F, 0.5F);
  return __fmul_rn(x, 0.5F + copysignf(size, x));
}

template <typename T>
__device__ __forceinline__ float gelu_value(float x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return gelu_one_path(x);
  } else {
    return fused<Function::kGelu>(x);
  }
}

template <Function kFunction, typename T>
__device__ __forceinline__ Pair<T> apply_pair(Pair<T> x) {
  const auto scaled_by = [](float factor) {
    return [factor](float v) { return __fmul_rn(v, factor); };
  };
  const auto tanh_value = [](float v) { return tanh_in_steps<T>(v); };
  const Pair<T> one = constant_pair<T>(1.0F);
  const Pair<T> half = constant_pair<T>(0.5F);
  if constexpr (kFunction == Function::kSilu) {
    return map_pair<T>(x, [](float v) {
      // The residual's zero is positive: the sign of -0 comes back from x, which silu always
      // shares.
      return copysignf(divide_ordinary(v, 1.0F + expf(-v)), v);
    });
  } else if constexpr (kFunction == Function::kGeluTanh) {
    return map_pair<T>(x, [](float v) {
      const float cube = v * v * v;
      const float inner = kSqrtTwoOverPi * (v + kCubic * cube);
      return 0.5F * v * (1.0F + tanh_at_once<T>(inner));
    });
  } else if constexpr (kFunction == Function::kGelu) {
    return map_pair<T>(x, [](float v) { return gelu_value<T>(v); });
  } else if constexpr (kFunction == Function::kGeluNew) {
    const Pair<T> cube = __hmul2_rn(__hmul2_rn(x, x), x);
    const Pair<T> sum = __hadd2_rn(x, map_pair<T>(cube, scaled_by(kCubic)));
    const Pair<T> angle = map_pair<T>(map_pair<T>(sum, scaled_by(kSqrtTwoOverPi)), tanh_value);
    return __hmul2_rn(__hmul2_rn(x, half), __hadd2_rn(angle, one));
  } else if constexpr (kFunction == Function::kGeluFast) {
    const Pair<T> scaled = map_pair<T>(x, scaled_by(kFastScale));
    const Pair<T> cubic = __hmul2_rn(map_pair<T>(x, scaled_by(kCubic)), x);
    const Pair<T> angle = map_pair<T>(__hmul2_rn(scaled, __hadd2_rn(cubic, one)), tanh_value);
    return __hmul2_rn(__hmul2_rn(x, half), __hadd2_rn(angle, one));
  } else {
    const Pair<T> angle = map_pair<T>(x, scaled_by(kQuickScale));
    const Pair<T> logistic =
        map_pair<T>(angle, [](float v) { return divide_ordinary(1.0F, 1.0F + expf(-v)); });
    return __hmul2_rn(x, logistic);
  }
}

// ---- vectors

// function(gate) for a vector, rounded to T; then times up where there is one.
template <Function kFunction, bool kGated, typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> apply_vector(const Vec<T, kSize>& gate,
                                                      const Vec<T, kSize>& up) {
  Vec<T, kSize> result;
  if constexpr (sizeof(T) == 2 && kSize % 2 == 0) {
    const Pair<T>* pairs = reinterpret_cast<const Pair<T>*>(&gate);
    Pair<T>* results = reinterpret_cast<Pair<T>*>(&result);
    bool ordinary = true;
    if constexpr (kDivides<kFunction>) {
#pragma unroll
      for (int i = 0; i < kSize / 2; ++i) {
        ordinary = ordinary && is_ordinary<kFunction, T>(pairs[i]);
      }
    }
    if (ordinary) {
#pragma unroll
      for (int i = 0; i < kSize / 2; ++i) {
        results[i] = apply_pair<kFunction, T>(pairs[i]);
      }
    } else {
      // Rare. A loop of one pair at a time keeps the code small; the pairs move through the first
      // register, since an index that is only known at run time would put all vectors, of the
      // ordinary path too, into local memory.
#pragma unroll
      for (int i = 0; i < kSize / 2; ++i) {
        results[i] = pairs[i];
      }
#pragma unroll 1
      for (int count = 0; count < kSize / 2; ++count) {
        const Pair<T> value =
            map_pair<T>(results[0], [](float v) { return apply<kFunction, T>(v); });
#pragma unroll
        for (int i = 0; i + 1 < kSize / 2; ++i) {
          results[i] = results[i + 1];
        }
        results[kSize / 2 - 1] = value;
      }
    }
    if constexpr (kGated) {
      const Pair<T>* factors = reinterpret_cast<const Pair<T>*>(&up);
#pragma unroll
      for (int i = 0; i < kSize / 2; ++i) {
        results[i] = __hmul2_rn(results[i], factors[i]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float value = round_to<T>(apply<kFunction, T>(to_float(gate.data[i])));
      result.data[i] = from_float<T>(kGated ? __fmul_rn(value, to_float(up.data[i])) : value);
    }
  }
  return result;
}

}  // namespace graft_kernels::activation

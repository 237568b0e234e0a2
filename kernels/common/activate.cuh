// Activations that several packages apply to sums as they finish. Device code, no Torch.
#pragma once

#include <type_traits>

#include "kernels/common/activation_constants.h"

namespace graft_kernels {

// x / (1 + e^-y). In the 16-bit types the result is rounded next, so that a few units of float32 and what is
// denormal in it do not matter: the processor's own powers and reciprocals serve.
template <typename T>
__device__ __forceinline__ float times_logistic(float x, float y) {
  if constexpr (std::is_same_v<T, float>) {
    return x / (1.F + expf(-y));
  } else {
    constexpr float kLog2E = 1.4426950408889634074F;
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(y * -kLog2E));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.F + power));
    return x * inverse;
  }
}

template <typename T>
__device__ __forceinline__ float silu(float x) {
  return times_logistic<T>(x, x);
}

template <typename T>
__device__ __forceinline__ float gelu(float x) {
  return 0.5F * x * (1.F + erff(x * kSqrtHalf));
}

// (1 + tanh y) / 2 is the logistic function of 2y, without the difference of nearly equal numbers.
template <typename T>
__device__ __forceinline__ float gelu_tanh(float x) {
  const float angle = kSqrtTwoOverPi * (x + kCubic * x * x * x);
  return std::is_same_v<T, float> ? 0.5F * x * (1.F + tanhf(angle))
                                  : times_logistic<T>(x, 2.F * angle);
}

}  // namespace graft_kernels

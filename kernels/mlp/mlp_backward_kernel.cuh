// The activation of a gated MLP that trains: of products that are kept, and its gradients. Device code, no Torch.
#pragma once

#include "kernels/mlp/mlp_kernel.cuh"

namespace graft_kernels::mlp {

struct Activated {
  float value, slope;
};

// The function and its derivative.
template <typename T>
__device__ __forceinline__ Activated activate_with_slope(Function function, float x) {
  constexpr float kInverseSqrtTwoPi = 0.39894228040143267794F;
  switch (function) {
    case Function::kSilu: {
      const float share = times_logistic<T>(1.F, x);
      const float value = std::is_same_v<T, float> ? silu<T>(x) : x * share;
      return {value, share * (1.F + x * (1.F - share))};
    }
    case Function::kGelu:
      return {gelu<T>(x),
              0.5F * (1.F + erff(x * kSqrtHalf)) + x * kInverseSqrtTwoPi * expf(-0.5F * x * x)};
    default: {
      const float angle = tanhf(kSqrtTwoOverPi * (x + kCubic * x * x * x));
      const float inner = kSqrtTwoOverPi * (1.F + 3.F * kCubic * x * x);
      return {gelu_tanh<T>(x), 0.5F * (1.F + angle) + 0.5F * x * (1.F - angle * angle) * inner};
    }
  }
}

// What the gradients of gate and up are made from, and where they go: the same memory where nobody keeps the products.
template <typename T>
struct ActivationGradients {
  const T* gate;
  const T* up;
  T* grad_gate;
  T* grad_up;
  T* grad;  // the gradient of h = function(gate) * up where it is not at hand; becomes h, each step rounded to T
};

// Gates and ups become their gradients, the gradients of h become h.
template <typename T, int kSize>
__device__ __forceinline__ void turn_into_gradients(Function function, Vec<T, kSize>& gates,
                                                    Vec<T, kSize>& ups, Vec<T, kSize>& grads) {
#pragma unroll
  for (int element = 0; element < kSize; ++element) {
    const float x = to_float(gates.data[element]), factor = to_float(ups.data[element]);
    const float incoming = to_float(grads.data[element]);
    const Activated activated = activate_with_slope<T>(function, x);
    gates.data[element] = from_float<T>(incoming * factor * activated.slope);
    ups.data[element] = from_float<T>(incoming * activated.value);
    grads.data[element] = from_float<T>(round_to<T>(activated.value) * factor);
  }
}

// Vectors of kSize elements.
template <typename T, int kSize>
__global__ void activate_backward_kernel(Function function, ActivationGradients<T> at,
                                         int64_t num_vectors) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_vectors; i += step) {
    Vec<T, kSize> gates = load_streaming<T, kSize>(at.gate + i * kSize);
    Vec<T, kSize> ups = load_streaming<T, kSize>(at.up + i * kSize);
    Vec<T, kSize> grads = load_streaming<T, kSize>(at.grad + i * kSize);
    turn_into_gradients(function, gates, ups, grads);
    store_vector(at.grad_gate + i * kSize, gates);
    store_vector(at.grad_up + i * kSize, ups);
    store_vector(at.grad + i * kSize, grads);
  }
}

}  // namespace graft_kernels::mlp

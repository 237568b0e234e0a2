// The activation of a gated MLP that trains: of products that are kept, and its gradients. Device code, no Torch.
#pragma once

#include "kernels/mlp/mlp_kernel.cuh"

namespace graft_kernels::mlp {

// The derivative of the function.
template <typename T>
__device__ __forceinline__ float activation_slope(Function function, float x) {
  constexpr float kInverseSqrtTwoPi = 0.39894228040143267794F;
  switch (function) {
    case Function::kSilu: {
      const float share =
          sizeof(T) == 4 ? 1.F / (1.F + expf(-x)) : __fdividef(1.F, 1.F + __expf(-x));
      return share * (1.F + x * (1.F - share));
    }
    case Function::kGelu:
      return 0.5F * (1.F + erff(x * kSqrtHalf)) + x * kInverseSqrtTwoPi * expf(-0.5F * x * x);
    default: {
      const float angle = tanhf(kSqrtTwoOverPi * (x + kCubic * x * x * x));
      const float inner = kSqrtTwoOverPi * (1.F + 3.F * kCubic * x * x);
      return 0.5F * (1.F + angle) + 0.5F * x * (1.F - angle * angle) * inner;
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
  T* grad;  // the gradient of h = function(gate) * up; becomes h, each step rounded to T
};

// Vectors of kSize elements.
template <typename T, int kSize>
__global__ void activate_backward_kernel(Function function, ActivationGradients<T> at,
                                         int64_t num_vectors) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_vectors; i += step) {
    Vec<T, kSize> gates = load_streaming<T, kSize>(at.gate + i * kSize);
    Vec<T, kSize> ups = load_streaming<T, kSize>(at.up + i * kSize);
    Vec<T, kSize> grads = load_streaming<T, kSize>(at.grad + i * kSize);
#pragma unroll
    for (int element = 0; element < kSize; ++element) {
      const float x = to_float(gates.data[element]), factor = to_float(ups.data[element]);
      const float incoming = to_float(grads.data[element]);
      const float value = activate<T>(function, x);
      gates.data[element] = from_float<T>(incoming * factor * activation_slope<T>(function, x));
      ups.data[element] = from_float<T>(incoming * value);
      grads.data[element] = from_float<T>(round_to<T>(value) * factor);
    }
    store_vector(at.grad_gate + i * kSize, gates);
    store_vector(at.grad_up + i * kSize, ups);
    store_vector(at.grad + i * kSize, grads);
  }
}

}  // namespace graft_kernels::mlp

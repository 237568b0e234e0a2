// What the CUDA files of the MLP share: the activation of finished products, and gate and up on Hopper's tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "kernels/common/cuda_launch.h"
#include "kernels/mlp/mlp_backward_kernel.cuh"
#include "kernels/mlp/mlp_backward_ops.h"

namespace graft_kernels::mlp {

inline constexpr unsigned kActivateThreads = 256;

inline const void* pointer_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// Launches over the elements of gate and up, both contiguous: start(type, size, blocks, vectors) takes vectors of
// `size` elements. What else start reads and writes is ATen's own, aligned to far more than 16 bytes.
template <typename Start>
void over_vectors(const CudaScope& scope, const Tensor& gate, const Tensor& up,
                  const Start& start) {
  const int64_t count = gate.numel();
  const auto launch = [&](auto type, auto size) {
    const int64_t vectors = count / decltype(size)::value;
    const int64_t blocks = std::min<int64_t>((vectors + kActivateThreads - 1) / kActivateThreads,
                                             16 * scope.attribute(cudaDevAttrMultiProcessorCount));
    start(type, size, static_cast<unsigned>(blocks), vectors);
    check_cuda(cudaGetLastError(), "the activation of an MLP");
  };
  const auto launch_type = [&](auto type) {
    constexpr int kSize = kVectorSize<decltype(type)>;
    if (is_aligned(gate) && is_aligned(up) && count % kSize == 0) {
      launch(type, std::integral_constant<int, kSize>());
    } else {
      launch(type, std::integral_constant<int, 1>());
    }
  };
  if (count == 0) {
    return;
  }
  switch (dtype_of(gate)) {
    case Dtype::kFloat32:
      return launch_type(float());
    case Dtype::kBfloat16:
      return launch_type(Bf16());
    case Dtype::kFloat16:
      return launch_type(Fp16());
  }
}

// out = function(gate) * up; `out` may be gate.
inline void activate_all(const CudaScope& scope, Function function, const Tensor& gate,
                         const Tensor& up, const Tensor& out) {
  over_vectors(scope, gate, up, [&](auto type, auto size, unsigned blocks, int64_t vectors) {
    using T = decltype(type);
    activate_kernel<T, decltype(size)::value><<<blocks, kActivateThreads, 0, scope.stream()>>>(
        function, static_cast<const T*>(gate.const_data_ptr()),
        static_cast<const T*>(up.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
        vectors);
  });
}

// The products of gate and up for `rows` rows of x; `out` [rows, inner] gets what they are activated to.
inline GateUpProblem describe_gate_up(const Arguments& arguments, Function function, int64_t rows,
                                      const Tensor& out) {
  GateUpProblem problem;
  problem.function = function;
  problem.gate_weight = arguments.gate_weight.const_data_ptr();
  problem.up_weight = arguments.up_weight.const_data_ptr();
  problem.gate_bias = pointer_of(arguments.gate_bias);
  problem.up_bias = pointer_of(arguments.up_bias);
  problem.x = arguments.x.const_data_ptr();
  problem.rows = static_cast<int>(rows);
  problem.depth = static_cast<int>(arguments.gate_weight.size(1));
  problem.inner = static_cast<int>(arguments.gate_weight.size(0));
  problem.out = out.mutable_data_ptr();
  return problem;
}

// Whether gate and up run as one product of Hopper's tiles: 16-bit dtypes, rows enough, on compute capability 9.0.
bool takes_tiles(const CudaScope& scope, const Arguments& arguments, int64_t rows);

// Runs them, for what takes_tiles() takes.
void run_tiles(const CudaScope& scope, Dtype dtype, const GateUpProblem& problem);

// What a backward makes of the products, [rows, inner] each; gradients may lie where their products did.
struct GradientProblem {
  const Tensor& grad_out;     // [rows, hidden]
  const Tensor& down_weight;  // [hidden, inner]
  const Kept& products;
  Tensor& grad_gate;
  Tensor& grad_up;
  Tensor& activated;
  Function function;

  template <typename T>
  ActivationGradients<T> pointers() const {
    return {static_cast<const T*>(products.gate.const_data_ptr()),
            static_cast<const T*>(products.up.const_data_ptr()),
            static_cast<T*>(grad_gate.mutable_data_ptr()),
            static_cast<T*>(grad_up.mutable_data_ptr()),
            static_cast<T*>(activated.mutable_data_ptr())};
  }
};

// The same for the product of grad_out with down's weight, whose sums become the gradients of gate and up and h.
bool takes_gradient_tiles(const CudaScope& scope, const GradientProblem& problem);
void run_gradient_tiles(const CudaScope& scope, const GradientProblem& problem);

}  // namespace graft_kernels::mlp

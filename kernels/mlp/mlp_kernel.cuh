// Gate and up of the MLP: for few rows of x products that are activated as they finish; for many rows the
// activation of finished products. Device code, no Torch.
#pragma once

#include "kernels/common/activate.cuh"
#include "kernels/common/few_rows.cuh"
#include "kernels/mlp/mlp.h"

namespace graft_kernels::mlp {

struct GateUpProblem {
  Function function = Function::kSilu;
  const void* gate_weight = nullptr;  // [inner, depth]
  const void* up_weight = nullptr;    // [inner, depth]
  const void* gate_bias = nullptr;    // [inner] or absent
  const void* up_bias = nullptr;      // [inner] or absent
  const void* x = nullptr;            // [rows, depth]
  int rows = 0;
  int depth = 0;
  int inner = 0;
  void* out = nullptr;  // [rows, inner]
  // The products themselves, biases added, [rows, inner]; both absent where nobody keeps them.
  void* gate = nullptr;
  void* up = nullptr;
};

template <typename T>
__device__ __forceinline__ float activate(Function function, float x) {
  switch (function) {
    case Function::kSilu:
      return silu<T>(x);
    case Function::kGelu:
      return gelu<T>(x);
    default:
      return gelu_tanh<T>(x);
  }
}

// The upper half of a tile is eight rows of gate, the lower half the same rows of up: one thread then
// has both sums of an element.
inline constexpr int kTileColumns = few_rows::kTileRows / 2;

template <typename T>
struct GateUpSource {
  const GateUpProblem& problem;
  __device__ const T* operator()(int tile, int row) const {
    const bool is_up = row >= kTileColumns;
    const int column = min(tile * kTileColumns + row % kTileColumns, problem.inner - 1);
    return static_cast<const T*>(is_up ? problem.up_weight : problem.gate_weight) +
           int64_t{column} * problem.depth;
  }
};

template <typename T>
struct GateUpSink {
  static constexpr int kJoinedRows = 2;
  const GateUpProblem& problem;

  __device__ float biased(float sum, const void* bias, int column) const {
    return round_to<T>(bias == nullptr ? sum : sum + to_float(static_cast<const T*>(bias)[column]));
  }
  __device__ void operator()(int tile, int row, int x_row, const float (&sums)[2]) const {
    const int column = tile * kTileColumns + row;
    if (column >= problem.inner) {
      return;
    }
    const float gate = biased(sums[0], problem.gate_bias, column);
    const float up = biased(sums[1], problem.up_bias, column);
    static_cast<T*>(problem.out)[int64_t{x_row} * problem.inner + column] =
        from_float<T>(round_to<T>(activate<T>(problem.function, gate)) * up);
  }
};

template <typename T, int kGroups, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, few_rows::kMostWarps / kWarps)
    gate_up_kernel(const __grid_constant__ GateUpProblem problem) {
  const few_rows::Input<T> input{static_cast<const T*>(problem.x), problem.depth, problem.rows,
                                 problem.depth};
  const int num_tiles = (problem.inner + kTileColumns - 1) / kTileColumns;
  few_rows::multiply<T, kGroups, kWarps>(input, num_tiles, GateUpSource<T>{problem},
                                         GateUpSink<T>{problem});
}

// out[i] = function(gate[i]) * up[i], each step rounded to T; vectors of kSize elements. `out` may be gate.
template <typename T, int kSize>
__global__ void activate_kernel(Function function, const T* gate, const T* up, T* out,
                                int64_t num_vectors) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_vectors; i += step) {
    Vec<T, kSize> values = load_streaming<T, kSize>(gate + i * kSize);
    const Vec<T, kSize> factors = load_streaming<T, kSize>(up + i * kSize);
#pragma unroll
    for (int element = 0; element < kSize; ++element) {
      const float activated = activate<T>(function, to_float(values.data[element]));
      values.data[element] =
          from_float<T>(round_to<T>(activated) * to_float(factors.data[element]));
    }
    store_vector(out + i * kSize, values);
  }
}

}  // namespace graft_kernels::mlp

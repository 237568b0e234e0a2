// Device code of the activations on raw pointers; no Torch. Elements are counted row by row in
// vectors; every thread takes kUnroll vectors, a block apart from each other, and loads all before
// it computes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/activation/activation_math.cuh"

namespace graft_kernels::activation {

inline constexpr int kThreads = 256;

// Vectors in flight per thread and input.
template <bool kGated>
inline constexpr int kUnroll = kGated ? 2 : 4;

// gate, up, out [rows, columns]; kSize divides columns unless there is one row, whose tail the
// first threads finish element by element. Index is uint32_t while the count of vectors allows.
template <Function kFunction, bool kGated, typename T, int kSize, typename Index>
__global__ void __launch_bounds__(kThreads)
    activation_fwd_kernel(const __grid_constant__ Problem problem) {
  constexpr int kSteps = kUnroll<kGated>;
  const T* gate = static_cast<const T*>(problem.gate);
  const T* up = static_cast<const T*>(problem.up);
  T* out = static_cast<T*>(problem.out);
  const Index per_row = static_cast<Index>(problem.columns / kSize);
  const Index total = per_row * static_cast<Index>(problem.rows);
  const Index first = static_cast<Index>(blockIdx.x) * (kThreads * kSteps) + threadIdx.x;

  Vec<T, kSize> gates[kSteps];
  Vec<T, kSize> ups[kSteps];
  T* targets[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Index index = first + step * kThreads;
    targets[step] = nullptr;
    if (index < total) {
      int64_t row = 0;
      int64_t column = static_cast<int64_t>(index) * kSize;
      if (problem.rows > 1) {
        const Index row_index = index / per_row;
        row = row_index;
        column = static_cast<int64_t>(index - row_index * per_row) * kSize;
      }
      gates[step] = load_streaming<T, kSize>(gate + problem.gate_rows.offset(row) + column);
      if constexpr (kGated) {
        ups[step] = load_streaming<T, kSize>(up + problem.up_rows.offset(row) + column);
      }
      targets[step] = out + problem.out_rows.offset(row) + column;
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (targets[step] != nullptr) {
      store_vector(targets[step],
                   apply_vector<kFunction, kGated, T, kSize>(gates[step], ups[step]));
    }
  }

  if constexpr (kSize > 1) {
    const int64_t tail = problem.columns % kSize;
    if (problem.rows == 1 && blockIdx.x == 0 && threadIdx.x < tail) {
      const int64_t column = problem.columns - tail + threadIdx.x;
      Vec<T, 1> factor = {};
      if constexpr (kGated) {
        factor.data[0] = up[column];
      }
      const Vec<T, 1> value = {gate[column]};
      out[column] = apply_vector<kFunction, kGated, T, 1>(value, factor).data[0];
    }
  }
}

}  // namespace graft_kernels::activation

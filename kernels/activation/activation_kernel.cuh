// Device code of the activations on raw pointers; no Torch. Elements are counted row by row in
// vectors; every thread takes kUnroll vectors, a block apart from each other, and loads all before
// it computes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/activation/activation_math.cuh"
#include "kernels/common/overlap.cuh"

namespace graft_kernels::activation {

inline constexpr int kThreads = 256;

// Vectors in flight per thread and input.
template <bool kGated>
inline constexpr int kUnroll = kGated ? 2 : 4;

// What a kernel has to know about rows; less knowledge needs fewer registers.
enum class Layout {
  kFlat,  // one row, whose tail of less than a vector is finished element by element
  kRows,  // rows one stride apart, whole vectors, fewer than 2^32 of them
  kAny,   // everything else, one element at a time
};

struct Offsets {
  int64_t gate;
  int64_t up;
  int64_t out;
};

template <Layout kLayout, int kSize>
__device__ __forceinline__ Offsets offsets_of(const Problem& problem, int64_t index,
                                              unsigned per_row) {
  if constexpr (kLayout == Layout::kFlat) {
    return {index * kSize, index * kSize, index * kSize};
  } else if constexpr (kLayout == Layout::kRows) {
    const unsigned row = static_cast<unsigned>(index) / per_row;
    const int64_t column =
        static_cast<int64_t>(static_cast<unsigned>(index) - row * per_row) * kSize;
    return {row * problem.gate_rows.stride[0] + column, row * problem.up_rows.stride[0] + column,
            row * problem.out_rows.stride[0] + column};
  } else {
    const int64_t row = index / problem.columns;
    const int64_t column = index - row * problem.columns;
    return {problem.gate_rows.offset(row) + column, problem.up_rows.offset(row) + column,
            problem.out_rows.offset(row) + column};
  }
}

// gate, up, out [rows, columns].
template <Function kFunction, bool kGated, typename T, Layout kLayout>
__global__ void __launch_bounds__(kThreads)
    activation_fwd_kernel(const __grid_constant__ Problem problem) {
  constexpr int kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int kSteps = kLayout == Layout::kAny ? 1 : kUnroll<kGated>;
  const T* gate = static_cast<const T*>(problem.gate);
  const T* up = static_cast<const T*>(problem.up);
  T* out = static_cast<T*>(problem.out);
  const int64_t per_row = problem.columns / kSize;
  const int64_t total = per_row * problem.rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kSteps) + threadIdx.x;
  let_next_start();
  wait_for_previous();

  Vec<T, kSize> gates[kSteps];
  Vec<T, kSize> ups[kSteps];
  int64_t targets[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t index = first + step * kThreads;
    targets[step] = -1;
    if (index < total) {
      const Offsets offsets =
          offsets_of<kLayout, kSize>(problem, index, static_cast<unsigned>(per_row));
      gates[step] = load_streaming<T, kSize>(gate + offsets.gate);
      if constexpr (kGated) {
        ups[step] = load_streaming<T, kSize>(up + offsets.up);
      }
      targets[step] = offsets.out;
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (targets[step] >= 0) {
      store_vector(out + targets[step],
                   apply_vector<kFunction, kGated, T, kSize>(gates[step], ups[step]));
    }
  }

  if constexpr (kLayout == Layout::kFlat) {
    const int64_t tail = problem.columns % kSize;
    if (blockIdx.x == 0 && threadIdx.x < tail) {
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

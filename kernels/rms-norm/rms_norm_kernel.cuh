// RMSNorm of rows that fit into a block's registers: a row (or several) is read once, kept, and
// written once. Device code on raw pointers; no Torch.
#pragma once

#include "kernels/common/overlap.cuh"
#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm {

// Threads that must fit on a multiprocessor at once: with 64 bytes in flight for each, three times
// the memory's latency times its bandwidth (20 KB), since part of them always reduces or stores.
inline constexpr int kResidentThreads = 1024;

template <bool kStrided>
__device__ __forceinline__ int64_t start_of(const RowLayout& layout, int64_t row) {
  return kStrided ? offset_of(layout, row) : row * layout.stride[0];
}

// kThreadsPerRow threads hold kRows rows at once, kVectors vectors of 16 bytes of each per thread.
// X is the dtype of x, residual, weight and out. A block has kThreads threads. kStrided: rows may lie several strides
// apart, as the heads of a fused projection do.
template <typename X, bool kCastBefore, int kThreads, int kThreadsPerRow, int kVectors, int kRows,
          bool kStrided>
__global__ void __launch_bounds__(kThreads, kResidentThreads / kThreads)
    rms_norm_fwd_register_kernel(const __grid_constant__ Problem problem) {
  constexpr int kSize = kVectorSize<X>;
  static_assert(kThreadsPerRow <= kWarp || (kThreadsPerRow == kThreads && kRows == 1));
  __shared__ float shared_sums[kThreads / kWarp];
  const int lane = threadIdx.x % kThreadsPerRow;
  const int64_t group =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kThreadsPerRow) + threadIdx.x / kThreadsPerRow;
  const int num_vectors = static_cast<int>(problem.columns / kSize);
  let_next_start();
  wait_for_previous();

  // Load the rows; every load is issued before the first is used.
  Vec<X, kSize> rows[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = group * kRows + r;
    const X* x = static_cast<const X*>(problem.x) + start_of<kStrided>(problem.x_rows, row);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = lane + v * kThreadsPerRow;
      if (row < problem.rows && index < num_vectors) {
        rows[r][v] = load_streaming<X, kSize>(x + static_cast<int64_t>(index) * kSize);
      } else {
        rows[r][v] = {};
      }
    }
  }

  // Add the residual, round, and write the sum.
  if (problem.residual != nullptr) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = group * kRows + r;
      if (row >= problem.rows) {
        continue;
      }
      const X* residual =
          static_cast<const X*>(problem.residual) + start_of<kStrided>(problem.residual_rows, row);
      X* sum = static_cast<X*>(problem.sum) + start_of<kStrided>(problem.sum_rows, row);
      Vec<X, kSize> addends[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = lane + v * kThreadsPerRow;
        if (index < num_vectors) {
          addends[v] = load_streaming<X, kSize>(residual + static_cast<int64_t>(index) * kSize);
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = lane + v * kThreadsPerRow;
        if (index < num_vectors) {
          rows[r][v] = sum_of(addends[v], rows[r][v]);
          store_vector(sum + static_cast<int64_t>(index) * kSize, rows[r][v]);
        }
      }
    }
  }

  // Load the weight under the reduction's latency.
  const X* weight = static_cast<const X*>(problem.weight);
  Vec<X, kSize> weights[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int index = lane + v * kThreadsPerRow;
    if (index < num_vectors) {
      weights[v] = load_shared_data<X, kSize>(weight + static_cast<int64_t>(index) * kSize);
    }
  }

  // Reduce.
  float inverse[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      squares += squares_of(rows[r][v]);
    }
    squares = kThreadsPerRow <= kWarp ? sum_over_lanes<kThreadsPerRow>(squares)
                                      : sum_over_block(squares, shared_sums, kThreads / kWarp);
    inverse[r] = rsqrtf(squares / static_cast<float>(problem.columns) + problem.eps);
  }

  // Scale and store.
  const bool zero_centered = problem.variant == Variant::kZeroCentered;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = group * kRows + r;
    if (row >= problem.rows) {
      continue;
    }
    X* out = static_cast<X*>(problem.out) + start_of<kStrided>(problem.out_rows, row);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = lane + v * kThreadsPerRow;
      if (index < num_vectors) {
        forget(rows[r][v]);
        Vec<X, kSize> scaling = weights[v];
        forget(scaling);
        store_vector(out + static_cast<int64_t>(index) * kSize,
                     scale_vector<kCastBefore, X>(rows[r][v], inverse[r], scaling, zero_centered));
      }
    }
  }
}

}  // namespace graft_kernels::rms_norm

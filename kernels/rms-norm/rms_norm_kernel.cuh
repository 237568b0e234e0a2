// Device code of RMSNorm on raw pointers; no Torch. Two kernels:
//   register  a row (or several) is read once, kept in registers, and written once; rows beyond
//   what one
//             block holds are shared by a cluster of blocks (Hopper)
//   looping   any row length, layout, alignment and dtype of the weight; reads the row twice
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

inline constexpr int kWarp = 32;
inline constexpr int kMaxCluster = 8;
// Threads that must fit on a multiprocessor at once: with 64 bytes in flight for each, three times
// the memory's latency times its bandwidth (20 KB), since part of them always reduces or stores.
inline constexpr int kResidentThreads = 1024;

// x * inverse, scaled by the weight in the numeric variant. kCastBefore: rounds to X in between.
template <bool kCastBefore, typename X>
__device__ __forceinline__ float scale(float element, float inverse, float weight,
                                       bool zero_centered) {
  const float norm = __fmul_rn(element, inverse);
  if constexpr (kCastBefore) {
    return __fmul_rn(weight, round_to<X>(norm));
  } else {
    return __fmul_rn(norm, zero_centered ? __fadd_rn(1.0F, weight) : weight);
  }
}

__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}

// Sum over a block of kWarps warps; every thread gets it. `shared` has a slot per warp.
__device__ __forceinline__ float sum_over_block(float value, float* shared, int num_warps) {
  value = sum_over_warp(value);
  if (num_warps == 1) {
    return value;
  }
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) {
    shared[warp] = value;
  }
  __syncthreads();
  value = static_cast<int>(threadIdx.x % kWarp) < num_warps ? shared[threadIdx.x % kWarp] : 0.0F;
  return sum_over_warp(value);
}

// Cluster primitives; NOTE: PTX ISA 7.8, sm_90 and later. Launchers use clusters on Hopper alone.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Stores into the same shared variable of another block of the cluster.
__device__ __forceinline__ void store_in_peer(float* shared, unsigned peer, float value) {
#if __CUDA_ARCH__ >= 900
  const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  unsigned remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(own), "r"(peer));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
#endif
}

// Sum over a cluster: every block writes its part into all blocks, in rank order, so that each
// block adds the same numbers in the same order. The caller has arrived once since the kernel began
// (all peers run).
__device__ __forceinline__ float sum_over_cluster(float value, float* shared, unsigned cluster) {
  cluster_wait();
  const unsigned rank = cluster_rank();
  if (threadIdx.x < cluster) {
    store_in_peer(shared + rank, threadIdx.x, value);
  }
  cluster_arrive();
  cluster_wait();
  float total = 0;
  for (unsigned peer = 0; peer < cluster; ++peer) {
    total += shared[peer];
  }
  return total;
}

// kThreadsPerRow threads hold kRows rows at once, kVectors vectors of 16 bytes of each per thread.
// X is the dtype of x, residual, weight and out. A block has kThreads threads. With cluster > 1,
// that many blocks share one row.
template <typename X, bool kCastBefore, int kThreads, int kThreadsPerRow, int kVectors, int kRows>
__global__ void __launch_bounds__(kThreads, kVectors > 4 ? 1 : kResidentThreads / kThreads)
    rms_norm_fwd_register_kernel(const __grid_constant__ Problem problem, unsigned cluster) {
  constexpr int kSize = kVectorSize<X>;
  static_assert(kThreadsPerRow == kWarp || (kThreadsPerRow == kThreads && kRows == 1));
  __shared__ float shared_sums[kThreads / kWarp];
  __shared__ float shared_cluster[kMaxCluster];
  if (cluster > 1) {
    cluster_arrive();
  }
  const unsigned rank = cluster > 1 ? cluster_rank() : 0;
  const int lane = threadIdx.x % kThreadsPerRow;
  const int64_t group = static_cast<int64_t>(blockIdx.x / cluster) * (kThreads / kThreadsPerRow) +
                        threadIdx.x / kThreadsPerRow;
  const int num_vectors = static_cast<int>(problem.columns / kSize);
  const int first = static_cast<int>(rank) * kThreadsPerRow + lane;
  const int step = static_cast<int>(cluster) * kThreadsPerRow;

  // Load the rows; every load is issued before the first is used.
  Vec<X, kSize> rows[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = group * kRows + r;
    const X* x = static_cast<const X*>(problem.x) + row * problem.x_rows.stride[0];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * step;
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
          static_cast<const X*>(problem.residual) + row * problem.residual_rows.stride[0];
      X* sum = static_cast<X*>(problem.sum) + row * problem.sum_rows.stride[0];
      Vec<X, kSize> addends[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = first + v * step;
        if (index < num_vectors) {
          addends[v] = load_streaming<X, kSize>(residual + static_cast<int64_t>(index) * kSize);
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = first + v * step;
        if (index < num_vectors) {
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            rows[r][v].data[i] =
                from_float<X>(to_float(addends[v].data[i]) + to_float(rows[r][v].data[i]));
          }
          store_vector(sum + static_cast<int64_t>(index) * kSize, rows[r][v]);
        }
      }
    }
  }

  // Load the weight under the reduction's latency.
  const X* weight = static_cast<const X*>(problem.weight);
  constexpr bool kEarlyWeight = kVectors <= 4;
  Vec<X, kSize> weights[kEarlyWeight ? kVectors : 1];
  if constexpr (kEarlyWeight) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * step;
      if (index < num_vectors) {
        weights[v] = load_shared_data<X, kSize>(weight + static_cast<int64_t>(index) * kSize);
      }
    }
  }

  // Reduce.
  float inverse[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float part = 0;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const float element = to_float(rows[r][v].data[i]);
        part = fmaf(element, element, part);
      }
      squares += part;
    }
    squares = kThreadsPerRow == kWarp ? sum_over_warp(squares)
                                      : sum_over_block(squares, shared_sums, kThreads / kWarp);
    if (cluster > 1) {
      squares = sum_over_cluster(squares, shared_cluster, cluster);
    }
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
    X* out = static_cast<X*>(problem.out) + row * problem.out_rows.stride[0];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = first + v * step;
      if (index < num_vectors) {
        forget(rows[r][v]);
        Vec<X, kSize> scaling;
        if constexpr (kEarlyWeight) {
          scaling = weights[v];
          forget(scaling);
        } else {
          scaling = load_shared_data<X, kSize>(weight + static_cast<int64_t>(index) * kSize);
        }
        Vec<X, kSize> result;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          result.data[i] = from_float<X>(scale<kCastBefore, X>(
              to_float(rows[r][v].data[i]), inverse[r], to_float(scaling.data[i]), zero_centered));
        }
        store_vector(out + static_cast<int64_t>(index) * kSize, result);
      }
    }
  }
}

// One block per row at a time, kSize elements per access; the row is read once for the sum and once
// more (from L2, mostly) for the result.
template <typename X, typename W, typename Out, bool kCastBefore, int kSize>
__global__ void rms_norm_fwd_looping_kernel(const __grid_constant__ Problem problem) {
  __shared__ float shared_sums[kWarp];
  const int num_warps = blockDim.x / kWarp;
  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const W* weight = static_cast<const W*>(problem.weight);
  const int64_t step = static_cast<int64_t>(blockDim.x) * kSize;
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(problem.x) + problem.x_rows.offset(row);
    float squares = 0;
    const X* source = x;
    if (problem.residual != nullptr) {
      const X* residual =
          static_cast<const X*>(problem.residual) + problem.residual_rows.offset(row);
      X* sum = static_cast<X*>(problem.sum) + problem.sum_rows.offset(row);
      source = sum;
      for (int64_t column = threadIdx.x * kSize; column < problem.columns; column += step) {
        const Vec<X, kSize> value = load_streaming<X, kSize>(x + column);
        const Vec<X, kSize> addend = load_streaming<X, kSize>(residual + column);
        Vec<X, kSize> total;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          total.data[i] = from_float<X>(to_float(addend.data[i]) + to_float(value.data[i]));
          squares = fmaf(to_float(total.data[i]), to_float(total.data[i]), squares);
        }
        store_vector(sum + column, total);
      }
    } else {
      for (int64_t column = threadIdx.x * kSize; column < problem.columns; column += step) {
        const Vec<X, kSize> value = load_streaming<X, kSize>(x + column);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          squares = fmaf(to_float(value.data[i]), to_float(value.data[i]), squares);
        }
      }
    }
    squares = sum_over_block(squares, shared_sums, num_warps);
    const float inverse = rsqrtf(squares / static_cast<float>(problem.columns) + problem.eps);
    Out* out = static_cast<Out*>(problem.out) + problem.out_rows.offset(row);
    // Each thread reads back the elements that it wrote itself, so no barrier stands in between.
    for (int64_t column = threadIdx.x * kSize; column < problem.columns; column += step) {
      const Vec<X, kSize> value = *reinterpret_cast<const Vec<X, kSize>*>(source + column);
      const Vec<W, kSize> scaling = load_shared_data<W, kSize>(weight + column);
      Vec<Out, kSize> result;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        result.data[i] = from_float<Out>(scale<kCastBefore, X>(
            to_float(value.data[i]), inverse, to_float(scaling.data[i]), zero_centered));
      }
      store_vector(out + column, result);
    }
    // The sums are written again for the next row.
    __syncthreads();
  }
}

}  // namespace graft_kernels::rms_norm

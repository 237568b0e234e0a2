// What the RMSNorm kernels share: the arithmetic of vectors, and sums over warps, blocks and
// clusters. Device code, no Torch.
//
// A row's sum has one order, which depends on its length alone: `Order` says how many threads take
// turns with its vectors, and in how many parts. A row has the same bits whichever kernel computes
// it, wherever it lies.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

inline constexpr int kWarp = 32;
inline constexpr int kMaxCluster = 8;

// Vector i of a row belongs to thread i % threads of part i / threads % parts.
struct Order {
  int threads;
  int parts;
};

// Where a row lies; rows of several strides are counted in 32 bits where they can be.
__device__ __forceinline__ int64_t offset_of(const RowLayout& layout, int64_t row) {
  if (layout.num_dims == 1) {
    return row * layout.stride[0];
  }
  if (row >= int64_t{1} << 32) {
    return layout.offset(row);
  }
  auto rest = static_cast<unsigned>(row);
  int64_t offset = 0;
  for (int dim = layout.num_dims - 1; dim > 0; --dim) {
    const auto size = static_cast<unsigned>(layout.size[dim]);
    offset += (rest % size) * layout.stride[dim];
    rest /= size;
  }
  return offset + rest * layout.stride[0];
}

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

// Sum over kWidth neighbouring lanes. Lanes that hold zero change no bit of it, so that a row of few vectors has the
// same sum on half a warp as on a whole one.
template <int kWidth>
__device__ __forceinline__ float sum_over_lanes(float value) {
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}
__device__ __forceinline__ float sum_over_warp(float value) { return sum_over_lanes<kWarp>(value); }

// Sums over a warp of two values at half the exchanges: lanes 0-15 go on with x, lanes 16-31 with y.
// Returns the sum of x in the lower half of the warp and that of y in the upper.
__device__ __forceinline__ float sum_pair_halves(float2 value) {
  const bool lower = threadIdx.x % kWarp < kWarp / 2;
  const float sent = lower ? value.y : value.x;
  float sum = (lower ? value.x : value.y) + __shfl_xor_sync(0xffffffffU, sent, kWarp / 2);
#pragma unroll
  for (int distance = kWarp / 4; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffU, sum, distance);
  }
  return sum;
}

// Sum of the squares of a vector; every kernel adds the squares of a thread's vectors in turn to
// the thread's sum, then over the block, then over the parts of the row.
template <typename X, int kSize>
__device__ __forceinline__ float squares_of(const Vec<X, kSize>& vector) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float element = to_float(vector.data[i]);
    squares = fmaf(element, element, squares);
  }
  return squares;
}

// residual + x, rounded to X.
template <typename X, int kSize>
__device__ __forceinline__ Vec<X, kSize> sum_of(const Vec<X, kSize>& residual,
                                                const Vec<X, kSize>& x) {
  Vec<X, kSize> sum;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    sum.data[i] = from_float<X>(to_float(residual.data[i]) + to_float(x.data[i]));
  }
  return sum;
}

template <bool kCastBefore, typename Out, typename X, typename W, int kSize>
__device__ __forceinline__ Vec<Out, kSize> scale_vector(const Vec<X, kSize>& vector, float inverse,
                                                        const Vec<W, kSize>& weight,
                                                        bool zero_centered) {
  Vec<Out, kSize> result;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    result.data[i] = from_float<Out>(scale<kCastBefore, X>(
        to_float(vector.data[i]), inverse, to_float(weight.data[i]), zero_centered));
  }
  return result;
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

}  // namespace graft_kernels::rms_norm

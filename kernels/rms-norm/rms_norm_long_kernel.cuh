// RMSNorm of the other rows. Device code on raw pointers; no Torch. Two kernels:
//   shared    long rows: a cluster of blocks (Hopper) keeps a row in shared memory
//   looping   any row length, layout, alignment and dtype of the weight; reads the row twice
#pragma once

#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm {

inline constexpr int kLongThreads = 512;
// Vectors per thread: 64 KB a block, so that three blocks fit on a multiprocessor and one loads
// while others reduce and store.
inline constexpr int kLongVectors = 8;
inline constexpr int kLongBlocks = 3;
inline constexpr int kLongSharedBytes = kLongThreads * kLongVectors * 16;

// 16 bytes from global to shared memory, past the registers.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// gridDim = rows * cluster; each thread reads from shared memory what it brought there itself, so
// that no barrier stands in between.
template <typename X, bool kCastBefore>
__global__ void __launch_bounds__(kLongThreads, kLongBlocks)
    rms_norm_fwd_shared_kernel(const __grid_constant__ Problem problem, unsigned cluster) {
  constexpr int kSize = kVectorSize<X>;
  constexpr int kBatch = 4;
  using Vector = Vec<X, kSize>;
  extern __shared__ uint4 shared_row[];
  __shared__ float shared_sums[kLongThreads / kWarp];
  __shared__ float shared_cluster[kMaxCluster];
  if (cluster > 1) {
    cluster_arrive();
  }
  Vector* kept = reinterpret_cast<Vector*>(shared_row) + threadIdx.x;
  const unsigned rank = cluster > 1 ? cluster_rank() : 0;
  const int64_t row = blockIdx.x / cluster;
  const int num_vectors = static_cast<int>(problem.columns / kSize);
  const int first = static_cast<int>(rank * kLongThreads + threadIdx.x);
  const int step = static_cast<int>(cluster) * kLongThreads;

  const X* x = static_cast<const X*>(problem.x) + row * problem.x_rows.stride[0];
#pragma unroll
  for (int v = 0; v < kLongVectors; ++v) {
    const int index = first + v * step;
    if (index < num_vectors) {
      copy_async(kept + v * kLongThreads, x + static_cast<int64_t>(index) * kSize);
    }
  }

  float squares = 0;
  if (problem.residual != nullptr) {
    const X* residual =
        static_cast<const X*>(problem.residual) + row * problem.residual_rows.stride[0];
    X* sum = static_cast<X*>(problem.sum) + row * problem.sum_rows.stride[0];
#pragma unroll 1
    for (int batch = 0; batch < kLongVectors; batch += kBatch) {
      Vector addends[kBatch];
#pragma unroll
      for (int v = 0; v < kBatch; ++v) {
        const int index = first + (batch + v) * step;
        if (index < num_vectors) {
          addends[v] = load_streaming<X, kSize>(residual + static_cast<int64_t>(index) * kSize);
        }
      }
      wait_for_copies();
#pragma unroll
      for (int v = 0; v < kBatch; ++v) {
        const int index = first + (batch + v) * step;
        if (index < num_vectors) {
          const Vector total = sum_of(addends[v], kept[(batch + v) * kLongThreads]);
          squares += squares_of(total);
          kept[(batch + v) * kLongThreads] = total;
          store_vector(sum + static_cast<int64_t>(index) * kSize, total);
        }
      }
    }
  } else {
    wait_for_copies();
#pragma unroll 2
    for (int v = 0; v < kLongVectors; ++v) {
      if (first + v * step < num_vectors) {
        squares += squares_of(kept[v * kLongThreads]);
      }
    }
  }
  squares = sum_over_block(squares, shared_sums, kLongThreads / kWarp);
  if (cluster > 1) {
    squares = sum_over_cluster(squares, shared_cluster, cluster);
  }
  const float inverse = rsqrtf(squares / static_cast<float>(problem.columns) + problem.eps);

  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const X* weight = static_cast<const X*>(problem.weight);
  X* out = static_cast<X*>(problem.out) + row * problem.out_rows.stride[0];
#pragma unroll 2
  for (int v = 0; v < kLongVectors; ++v) {
    const int index = first + v * step;
    if (index < num_vectors) {
      const Vector scaling =
          load_shared_data<X, kSize>(weight + static_cast<int64_t>(index) * kSize);
      store_vector(
          out + static_cast<int64_t>(index) * kSize,
          scale_vector<kCastBefore, X>(kept[v * kLongThreads], inverse, scaling, zero_centered));
    }
  }
}

// A vector of a row; element by element where it may lie at any address or reach beyond the row.
template <bool kAligned, int kSize, typename T>
__device__ __forceinline__ Vec<T, kSize> load_any(const T* row, int64_t column, int64_t columns) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Vec<T, kSize>*>(row + column);
  } else {
    Vec<T, kSize> value = {};
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (column + i < columns) {
        value.data[i] = row[column + i];
      }
    }
    return value;
  }
}
template <bool kAligned, int kSize, typename T>
__device__ __forceinline__ void store_any(T* row, int64_t column, int64_t columns,
                                          const Vec<T, kSize>& value) {
  if constexpr (kAligned) {
    store_vector(row + column, value);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (column + i < columns) {
        row[column + i] = value.data[i];
      }
    }
  }
}

// One block of Order::threads threads per row at a time; the row is read once for the sum and once
// more (from L2, mostly) for the result.
template <typename X, typename W, typename Out, bool kCastBefore, bool kAligned>
__global__ void rms_norm_fwd_looping_kernel(const __grid_constant__ Problem problem, int parts) {
  constexpr int kSize = kVectorSize<X>;
  __shared__ float shared_sums[kWarp];
  const int num_warps = blockDim.x / kWarp;
  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const int64_t columns = problem.columns;
  const int64_t part_step = static_cast<int64_t>(blockDim.x) * kSize;
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(problem.x) + problem.x_rows.offset(row);
    const X* residual = nullptr;
    X* sum = nullptr;
    if (problem.residual != nullptr) {
      residual = static_cast<const X*>(problem.residual) + problem.residual_rows.offset(row);
      sum = static_cast<X*>(problem.sum) + problem.sum_rows.offset(row);
    }
    float squares = 0;
    for (int part = 0; part < parts; ++part) {
      float of_part = 0;
      for (int64_t column = part * part_step + threadIdx.x * kSize; column < columns;
           column += parts * part_step) {
        Vec<X, kSize> value = load_any<kAligned, kSize>(x, column, columns);
        if (residual != nullptr) {
          value = sum_of(load_any<kAligned, kSize>(residual, column, columns), value);
          store_any<kAligned>(sum, column, columns, value);
        }
        of_part += squares_of(value);
      }
      squares += sum_over_block(of_part, shared_sums, num_warps);
      // The sums are written again for the next part or row.
      __syncthreads();
    }
    const float inverse = rsqrtf(squares / static_cast<float>(columns) + problem.eps);
    const X* source = sum != nullptr ? sum : x;
    Out* out = static_cast<Out*>(problem.out) + problem.out_rows.offset(row);
    // Each thread reads back the elements that it wrote itself, so no barrier stands in between.
    for (int64_t column = threadIdx.x * kSize; column < columns; column += part_step) {
      const Vec<X, kSize> value = load_any<kAligned, kSize>(source, column, columns);
      const Vec<W, kSize> scaling =
          load_any<kAligned, kSize>(static_cast<const W*>(problem.weight), column, columns);
      store_any<kAligned>(out, column, columns,
                          scale_vector<kCastBefore, Out>(value, inverse, scaling, zero_centered));
    }
  }
}

}  // namespace graft_kernels::rms_norm

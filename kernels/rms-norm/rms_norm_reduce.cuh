// What the RMSNorm kernels share: the arithmetic of vectors, and sums over warps and blocks. Device code, no Torch.
//
// A row's sum has one order, which depends on its length alone: `Order` says how many threads take
// turns with its vectors, and in how many parts. A row has the same bits whichever kernel computes
// it, wherever it lies.
#pragma once

#include <type_traits>

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

inline constexpr int kWarp = 32;

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

template <typename X, int kSize>
__device__ __forceinline__ Packed<X>* pairs_of(Vec<X, kSize>& vector) {
  return reinterpret_cast<Packed<X>*>(&vector);
}
template <typename X, int kSize>
__device__ __forceinline__ const Packed<X>* pairs_of(const Vec<X, kSize>& vector) {
  return reinterpret_cast<const Packed<X>*>(&vector);
}

// residual + x, rounded to X.
template <typename X, int kSize>
__device__ __forceinline__ Vec<X, kSize> sum_of(const Vec<X, kSize>& residual,
                                                const Vec<X, kSize>& x) {
  Vec<X, kSize> sum;
  if constexpr (sizeof(X) == 2 && kSize % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      pairs_of(sum)[i] = __hadd2_rn(pairs_of(residual)[i], pairs_of(x)[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      sum.data[i] = from_float<X>(to_float(residual.data[i]) + to_float(x.data[i]));
    }
  }
  return sum;
}

template <bool kCastBefore, typename Out, typename X, typename W, int kSize>
__device__ __forceinline__ Vec<Out, kSize> scale_vector(const Vec<X, kSize>& vector, float inverse,
                                                        const Vec<W, kSize>& weight,
                                                        bool zero_centered) {
  Vec<Out, kSize> result;
  if constexpr (kCastBefore && sizeof(X) == 2 && kSize % 2 == 0 && std::is_same_v<X, W> &&
                std::is_same_v<X, Out>) {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      const float2 values = to_floats(pairs_of(vector)[i]);
      const float2 norms = {__fmul_rn(values.x, inverse), __fmul_rn(values.y, inverse)};
      pairs_of(result)[i] = __hmul2_rn(pairs_of(weight)[i], from_floats<X>(norms));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      result.data[i] = from_float<Out>(scale<kCastBefore, X>(
          to_float(vector.data[i]), inverse, to_float(weight.data[i]), zero_centered));
    }
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

}  // namespace graft_kernels::rms_norm

// Rotary position embedding on CUDA. Device code on raw pointers; no Torch. A block takes one token:
// its threads read their part of the tables once and go through the heads of query and key with it.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"
#include "kernels/rotary/rotary.h"

namespace graft_kernels::rotary {

inline constexpr int kMaxThreads = 256;
// Heads in flight per thread: two vectors each.
inline constexpr int kUnroll = 2;

// kSize consecutive elements of a and of b of a pair.
template <typename T, int kSize>
struct PairOf {
  Vec<T, kSize> first;
  Vec<T, kSize> second;
};

// Where the elements of pair vector `lane` lie within a head: kInterleaved has a and b side by side
// and takes one pair at a time (kSize 1); else they lie `half` apart.
template <bool kInterleaved, int kSize>
__device__ __forceinline__ int64_t first_of(int lane) {
  return static_cast<int64_t>(lane) * kSize * (kInterleaved ? 2 : 1);
}

template <bool kInterleaved, typename T, int kSize>
__device__ __forceinline__ PairOf<T, kSize> load_pair(const T* head, int lane, int64_t half) {
  const int64_t first = first_of<kInterleaved, kSize>(lane);
  return {load_streaming<T, kSize>(head + first),
          load_streaming<T, kSize>(head + first + (kInterleaved ? 1 : half))};
}
template <bool kInterleaved, typename T, int kSize>
__device__ __forceinline__ void store_pair(T* head, int lane, int64_t half,
                                           const PairOf<T, kSize>& pair) {
  const int64_t first = first_of<kInterleaved, kSize>(lane);
  store_vector(head + first, pair.first);
  store_vector(head + first + (kInterleaved ? 1 : half), pair.second);
}

// Two pairs at a time in 16 bits: a product or sum of two 16-bit values is rounded once either way,
// and packed instructions do it for two (__hmul2_rn and its like never fuse).
template <bool kInverse, typename T, int kSize>
__device__ __forceinline__ PairOf<T, kSize> rotate_packed(const PairOf<T, kSize>& x,
                                                          const PairOf<T, kSize>& cos,
                                                          const PairOf<T, kSize>& sin) {
  using Two = Packed<T>;
  const auto words = [](const Vec<T, kSize>& vector) {
    return reinterpret_cast<const Two*>(&vector);
  };
  PairOf<T, kSize> result;
  Two* first = reinterpret_cast<Two*>(&result.first);
  Two* second = reinterpret_cast<Two*>(&result.second);
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) {
    const Two a = words(x.first)[i], b = words(x.second)[i];
    const Two straight_a = __hmul2_rn(a, words(cos.first)[i]);
    const Two straight_b = __hmul2_rn(b, words(cos.second)[i]);
    if constexpr (kInverse) {
      first[i] = __hadd2_rn(straight_a, __hmul2_rn(b, words(sin.second)[i]));
      second[i] = __hsub2_rn(straight_b, __hmul2_rn(a, words(sin.first)[i]));
    } else {
      first[i] = __hsub2_rn(straight_a, __hmul2_rn(b, words(sin.first)[i]));
      second[i] = __hadd2_rn(straight_b, __hmul2_rn(a, words(sin.second)[i]));
    }
  }
  return result;
}

// Each step rounded to S, the dtype of the tables; __fmul_rn and __fadd_rn never fuse.
template <bool kInverse, typename T, typename S, int kSize>
__device__ __forceinline__ PairOf<T, kSize> rotate(const PairOf<T, kSize>& x,
                                                   const PairOf<S, kSize>& cos,
                                                   const PairOf<S, kSize>& sin) {
  if constexpr (sizeof(T) == 2 && sizeof(S) == 2 && kSize % 2 == 0) {
    return rotate_packed<kInverse>(x, cos, sin);
  } else {
    PairOf<T, kSize> result;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float a = to_float(x.first.data[i]), b = to_float(x.second.data[i]);
      const float sin_a = to_float(sin.first.data[i]), sin_b = to_float(sin.second.data[i]);
      const float straight_a = round_to<S>(__fmul_rn(a, to_float(cos.first.data[i])));
      const float straight_b = round_to<S>(__fmul_rn(b, to_float(cos.second.data[i])));
      const float crossed_a = round_to<S>(__fmul_rn(b, kInverse ? sin_b : -sin_a));
      const float crossed_b = round_to<S>(__fmul_rn(a, kInverse ? -sin_a : sin_b));
      result.first.data[i] = from_float<T>(__fadd_rn(straight_a, crossed_a));
      result.second.data[i] = from_float<T>(__fadd_rn(straight_b, crossed_b));
    }
    return result;
  }
}

// blockDim = lanes * rows of heads; lanes = rotary_dim / 2 / kSize.
template <bool kInterleaved, bool kInverse, typename T, typename S, int kSize>
__global__ void __launch_bounds__(kMaxThreads)
    rotary_kernel(const __grid_constant__ Problem problem, int lanes) {
  const int64_t batch = blockIdx.x / problem.length;
  const int64_t position = blockIdx.x - batch * problem.length;
  const int64_t half = problem.rotary_dim / 2;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int first_head = static_cast<int>(threadIdx.x) / lanes;
  const int heads_at_once = static_cast<int>(blockDim.x) / lanes;
  const int num_query = static_cast<int>(problem.heads[0].count);
  const int num_heads = num_query + static_cast<int>(problem.heads[1].count);

  const auto table = [&](const Table& which) {
    return static_cast<const S*>(which.data) + batch * which.stride[0] + position * which.stride[1];
  };
  const auto in_of = [&](int head) {
    const Heads& heads = problem.heads[head < num_query ? 0 : 1];
    const int own = head < num_query ? head : head - num_query;
    return static_cast<const T*>(heads.in) + batch * heads.in_stride[0] +
           position * heads.in_stride[1] + own * heads.in_stride[2];
  };
  const auto out_of = [&](int head) {
    const Heads& heads = problem.heads[head < num_query ? 0 : 1];
    const int own = head < num_query ? head : head - num_query;
    return static_cast<T*>(heads.out) + batch * heads.out_stride[0] +
           position * heads.out_stride[1] + own * heads.out_stride[2];
  };

  const PairOf<S, kSize> cos = load_pair<kInterleaved, S, kSize>(table(problem.cos), lane, half);
  const PairOf<S, kSize> sin = load_pair<kInterleaved, S, kSize>(table(problem.sin), lane, half);
  for (int base = first_head; base < num_heads; base += heads_at_once * kUnroll) {
    PairOf<T, kSize> pairs[kUnroll];
#pragma unroll
    for (int step = 0; step < kUnroll; ++step) {
      const int head = base + step * heads_at_once;
      if (head < num_heads) {
        pairs[step] = load_pair<kInterleaved, T, kSize>(in_of(head), lane, half);
      }
    }
#pragma unroll
    for (int step = 0; step < kUnroll; ++step) {
      const int head = base + step * heads_at_once;
      if (head < num_heads) {
        store_pair<kInterleaved>(out_of(head), lane, half,
                                 rotate<kInverse, T, S, kSize>(pairs[step], cos, sin));
      }
    }
  }

  // What does not turn is copied, element by element: partial rotary is rare.
  if (problem.rotary_dim < problem.head_dim) {
    const int64_t rest = problem.head_dim - problem.rotary_dim;
    for (int64_t i = threadIdx.x; i < rest * num_heads; i += blockDim.x) {
      const int head = static_cast<int>(i / rest);
      const int64_t element = problem.rotary_dim + i % rest;
      out_of(head)[element] = in_of(head)[element];
    }
  }
}

}  // namespace graft_kernels::rotary

// RMSNorm of heads and their rotation on CUDA, for a call or for the append of one token a row. Device code on raw
// pointers; no Torch. A head is read once by a group of lanes, normed, turned with what other lanes hold of it, and
// written once.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/overlap.cuh"
#include "kernels/rms-norm/rms_norm_reduce.cuh"
#include "kernels/rotary/rotary_append.h"
#include "kernels/rotary/rotary_turn.cuh"

namespace graft_kernels::rotary {

inline constexpr int kNormThreads = 128;  // of a block, at most: with more, fewer blocks fit
inline constexpr int kNormRows = 4;       // heads in flight per group of lanes

// A plain call is an AppendProblem without `lengths`: all of it stands in `base`. How a token's blocks share it:
struct NormParts {
  int heads = 1;   // blocks that share the heads of query and key
  int values = 0;  // blocks that copy the value
  __host__ __device__ int all() const { return heads + values; }
};

// Where one token lies.
template <typename S>
struct TokenPlace {
  const S* cos;
  const S* sin;
  int64_t batch, position;
  int64_t place = 0;  // in the cache
  bool is_there = true;
};

template <typename S>
__device__ __forceinline__ TokenPlace<S> place_of(const AppendProblem& problem, int64_t token) {
  const Problem& base = problem.base;
  TokenPlace<S> found;
  found.batch = token / base.length;
  found.position = token - found.batch * base.length;
  int64_t cos_offset, sin_offset;
  if (problem.lengths == nullptr) {
    cos_offset = found.batch * base.cos.stride[0] + found.position * base.cos.stride[1];
    sin_offset = found.batch * base.sin.stride[0] + found.position * base.sin.stride[1];
  } else {
    const int64_t row = problem.positions[found.batch];
    found.place = problem.lengths[found.batch] - int64_t{1};
    found.is_there =
        found.place >= 0 && found.place < problem.places && row >= 0 && row < problem.table_rows;
    cos_offset = row * problem.table_stride[0];
    sin_offset = row * problem.table_stride[1];
  }
  found.cos = static_cast<const S*>(base.cos.data) + cos_offset;
  found.sin = static_cast<const S*>(base.sin.data) + sin_offset;
  return found;
}

template <typename T, typename S>
__device__ __forceinline__ const T* in_of(const AppendProblem& problem, const TokenPlace<S>& token,
                                          int head) {
  const int num_query = static_cast<int>(problem.base.heads[0].count);
  const Heads& heads = problem.base.heads[head < num_query ? 0 : 1];
  return static_cast<const T*>(heads.in) + token.batch * heads.in_stride[0] +
         token.position * heads.in_stride[1] +
         (head < num_query ? head : head - num_query) * heads.in_stride[2];
}
template <typename T, typename S>
__device__ __forceinline__ T* out_of(const AppendProblem& problem, const TokenPlace<S>& token,
                                     int head) {
  const int num_query = static_cast<int>(problem.base.heads[0].count);
  const Heads& heads = problem.base.heads[head < num_query ? 0 : 1];
  T* out = static_cast<T*>(heads.out) + token.batch * heads.out_stride[0] +
           token.position * heads.out_stride[1];
  return head < num_query ? out + head * heads.out_stride[2]
                          : out + (head - num_query) * heads.out_stride[2] +
                                token.place * problem.key_place_stride;
}
// Element `element` of head `head` of the value, and where it belongs.
template <typename T, typename S>
__device__ __forceinline__ const T* value_of(const AppendProblem& problem,
                                             const TokenPlace<S>& token, int head, int element) {
  return static_cast<const T*>(problem.value) + token.batch * problem.value_stride[0] +
         head * problem.value_stride[1] + element;
}
template <typename T, typename S>
__device__ __forceinline__ T* cached_value_of(const AppendProblem& problem,
                                              const TokenPlace<S>& token, int head, int element) {
  return static_cast<T*>(problem.values) + token.batch * problem.values_stride[0] +
         head * problem.values_stride[1] + token.place * problem.values_stride[2] + element;
}

// Vectors of the value, shared by the blocks of `parts.values`.
template <typename T, typename S>
__device__ __forceinline__ void copy_value(const AppendProblem& problem, const TokenPlace<S>& token,
                                           int part, int parts) {
  constexpr int kSize = kVectorSize<T>;
  const int lanes = static_cast<int>(problem.base.head_dim) / kSize;
  const int items = static_cast<int>(problem.base.heads[1].count) * lanes;
  for (int item = part * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x); item < items;
       item += parts * static_cast<int>(blockDim.x)) {
    const int head = item / lanes, element = (item - head * lanes) * kSize;
    store_vector(cached_value_of<T>(problem, token, head, element),
                 load_streaming<T, kSize>(value_of<T>(problem, token, head, element)));
  }
}

// kWidth lanes hold a head, kVectors vectors of 16 bytes each; grid tokens * parts.all(). Sums have the order of
// rms_norm's rows of this length (rms_norm_reduce.cuh).
template <bool kInterleaved, typename T, typename S, int kWidth, int kVectors>
__global__ void __launch_bounds__(kNormThreads)
    norm_rotary_kernel(const __grid_constant__ AppendProblem problem,
                       const __grid_constant__ NormParts parts) {
  constexpr int kSize = kVectorSize<T>;
  using Vector = Vec<T, kSize>;
  const Problem& base = problem.base;
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(parts.all()));
  let_next_start();
  wait_for_previous();
  const TokenPlace<S> token = place_of<S>(problem, blockIdx.x / static_cast<unsigned>(parts.all()));
  if (!token.is_there) {
    return;
  }
  if (part >= parts.heads) {
    copy_value<T>(problem, token, part - parts.heads, parts.values);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int group = static_cast<int>(threadIdx.x) / kWidth;
  const int groups = static_cast<int>(blockDim.x) / kWidth;
  const int num_vectors = static_cast<int>(base.head_dim) / kSize;
  const int turned = static_cast<int>(base.rotary_dim) / kSize;
  const int num_query = static_cast<int>(base.heads[0].count);
  const int num_heads = num_query + static_cast<int>(base.heads[1].count);
  const bool cast_before = base.norm.variant == rms_norm::Variant::kCastBeforeWeight;
  const bool zero_centered = base.norm.variant == rms_norm::Variant::kZeroCentered;

  // All threads of a warp go round together: they exchange what they hold.
  const int step = groups * parts.heads;
  for (int first = part * groups; first < num_heads; first += step * kNormRows) {
    Vector rows[kNormRows][kVectors];
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      const int head = first + r * step + group;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = lane + v * kWidth;
        rows[r][v] = {};
        if (head < num_heads && index < num_vectors) {
          rows[r][v] =
              load_streaming<T, kSize>(in_of<T>(problem, token, head) + int64_t{index} * kSize);
        }
      }
    }
    // Tables and weights under the latency of the heads; after the first round they lie in L1.
    Vec<S, kSize> cos[kVectors], sin[kVectors];
    Vector weights[2][kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int index = lane + v * kWidth;
      if (index < turned) {
        cos[v] = load_shared_data<S, kSize>(token.cos + index * kSize);
        sin[v] = load_shared_data<S, kSize>(token.sin + index * kSize);
      }
      if (index < num_vectors) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          weights[which][v] = load_shared_data<T, kSize>(
              static_cast<const T*>(base.norm.weight[which]) + index * kSize);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      if (first + r * step >= num_heads) {
        break;  // for the whole block
      }
      const int head = first + r * step + group;
      float squares = 0;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        squares += rms_norm::squares_of(rows[r][v]);
      }
      squares = rms_norm::sum_over_lanes<kWidth>(squares);
      const float inverse = rsqrtf(squares / static_cast<float>(base.head_dim) + base.norm.eps);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const Vector weight = head < num_query ? weights[0][v] : weights[1][v];
        rows[r][v] =
            cast_before
                ? rms_norm::scale_vector<true, T>(rows[r][v], inverse, weight, false)
                : rms_norm::scale_vector<false, T>(rows[r][v], inverse, weight, zero_centered);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = lane + v * kWidth;
        Vector other;
        if constexpr (kInterleaved) {
          other = neighbours_of(rows[r][v]);
        } else {
          other = half_across<kWidth, kVectors>(rows[r], index, turned / 2);
        }
        if (head < num_heads && index < num_vectors) {
          store_vector(out_of<T>(problem, token, head) + int64_t{index} * kSize,
                       index < turned ? turn<T, S>(rows[r][v], other, cos[v], sin[v]) : rows[r][v]);
        }
      }
    }
  }
}

}  // namespace graft_kernels::rotary

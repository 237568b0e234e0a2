// Rotary position embedding of heads of up to 32 vectors of 16 bytes, on CUDA: a head lies with as many lanes, so that
// every load and store is whole, and what a vector is turned with comes through shuffles. Device code on raw pointers;
// no Torch.
#pragma once

#include "kernels/rotary/rotary.h"
#include "kernels/rotary/rotary_turn.cuh"

namespace graft_kernels::rotary {

inline constexpr int kVectorThreads = 256;  // of a block, at most
inline constexpr int kVectorRows = 2;       // heads in flight per group of lanes

template <typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> negated(Vec<T, kSize> vector) {
  unsigned* words = reinterpret_cast<unsigned*>(&vector);
#pragma unroll
  for (int word = 0; word < static_cast<int>(sizeof(vector) / 4); ++word) {
    words[word] ^= sizeof(T) == 2 ? 0x80008000U : 0x80000000U;
  }
  return vector;
}

// The sines of vector `index`, as turn() takes them. The inverse turns with those of the other elements, the other way
// round.
template <bool kInterleaved, bool kInverse, typename S, int kSize>
__device__ __forceinline__ Vec<S, kSize> sines_of(const S* table, int index, int half) {
  if constexpr (!kInverse) {
    return load_shared_data<S, kSize>(table + index * kSize);
  } else if constexpr (kInterleaved) {
    Vec<S, kSize> sines = load_shared_data<S, kSize>(table + index * kSize);
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      const S first = sines.data[i];
      sines.data[i] = sines.data[i + 1];
      sines.data[i + 1] = first;
    }
    return negated(sines);
  } else {
    return negated(
        load_shared_data<S, kSize>(table + (index < half ? index + half : index - half) * kSize));
  }
}

// A block takes a token; kWidth lanes hold a head, a vector each.
template <bool kInterleaved, bool kInverse, typename T, typename S, int kWidth>
__global__ void __launch_bounds__(kVectorThreads)
    rotary_vectors_kernel(const __grid_constant__ Problem problem) {
  constexpr int kSize = kVectorSize<T>;
  using Vector = Vec<T, kSize>;
  const unsigned batch = blockIdx.x / static_cast<unsigned>(problem.length);
  const unsigned position = blockIdx.x - batch * static_cast<unsigned>(problem.length);
  const int lane = static_cast<int>(threadIdx.x) % kWidth;
  const int group = static_cast<int>(threadIdx.x) / kWidth;
  const int groups = static_cast<int>(blockDim.x) / kWidth;
  const int turned = static_cast<int>(problem.rotary_dim) / kSize;
  const bool holds = lane < static_cast<int>(problem.head_dim) / kSize;
  const int num_query = static_cast<int>(problem.heads[0].count);
  const int num_heads = num_query + static_cast<int>(problem.heads[1].count);

  const auto place_of = [&](const Heads& heads, const int64_t* strides, int head) {
    const int own = &heads == &problem.heads[0] ? head : head - num_query;
    return batch * strides[0] + position * strides[1] + own * strides[2] + lane * kSize;
  };
  // All threads of a warp go round together: they exchange what they hold.
  Vec<S, kSize> cos = {}, sin = {};
  for (int first = 0; first < num_heads; first += groups * kVectorRows) {
    Vector rows[kVectorRows];
#pragma unroll
    for (int r = 0; r < kVectorRows; ++r) {
      const int head = first + r * groups + group;
      rows[r] = {};
      if (head < num_heads && holds) {
        const Heads& heads = problem.heads[head < num_query ? 0 : 1];
        rows[r] = load_streaming<T, kSize>(static_cast<const T*>(heads.in) +
                                           place_of(heads, heads.in_stride, head));
      }
    }
    // The tables under the latency of the heads.
    if (first == 0 && lane < turned) {
      const auto row_of = [&](const Table& table) {
        return static_cast<const S*>(table.data) + batch * table.stride[0] +
               position * table.stride[1];
      };
      cos = load_shared_data<S, kSize>(row_of(problem.cos) + lane * kSize);
      sin = sines_of<kInterleaved, kInverse, S, kSize>(row_of(problem.sin), lane, turned / 2);
    }
#pragma unroll
    for (int r = 0; r < kVectorRows; ++r) {
      const int head = first + r * groups + group;
      Vector other;
      if constexpr (kInterleaved) {
        other = neighbours_of(rows[r]);
      } else {
        const Vector own[1] = {rows[r]};
        other = half_across<kWidth, 1>(own, lane, turned / 2);
      }
      if (head < num_heads && holds) {
        const Heads& heads = problem.heads[head < num_query ? 0 : 1];
        store_vector(static_cast<T*>(heads.out) + place_of(heads, heads.out_stride, head),
                     lane < turned ? turn<T, S>(rows[r], other, cos, sin) : rows[r]);
      }
    }
  }
}

}  // namespace graft_kernels::rotary

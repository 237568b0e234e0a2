// Rotation of heads that lie in whole vectors with the lanes of a warp: what a vector is turned with comes from itself
// or from another lane. Device code, no Torch.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"

namespace graft_kernels::rotary {

// The other element of each pair, its sign as its product with the sine has it: -b beside a, a beside b. Neighbours
// lie in one vector.
template <typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> neighbours_of(const Vec<T, kSize>& own) {
  Vec<T, kSize> other;
  const unsigned* from = reinterpret_cast<const unsigned*>(&own);
  unsigned* to = reinterpret_cast<unsigned*>(&other);
  constexpr int kWords = sizeof(own) / 4;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      to[word] = __byte_perm(from[word], from[word], 0x1032) ^ 0x8000U;
    }
  } else {
#pragma unroll
    for (int word = 0; word < kWords; word += 2) {
      to[word] = from[word + 1] ^ 0x80000000U;
      to[word + 1] = from[word];
    }
  }
  return other;
}

// The same where halves lie apart: another lane has them. `half` is counted in vectors; all lanes of a warp call.
template <int kWidth, int kVectors, typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> half_across(const Vec<T, kSize> (&own)[kVectors],
                                                     int index, int half) {
  const bool is_first = index < half, is_turned = index < 2 * half;
  const int source = is_first ? index + half : is_turned ? index - half : index;
  constexpr int kWords = sizeof(Vec<T, kSize>) / 4;
  const unsigned sign = is_first ? (sizeof(T) == 2 ? 0x80008000U : 0x80000000U) : 0U;
  Vec<T, kSize> other;
  unsigned* to = reinterpret_cast<unsigned*>(&other);
#pragma unroll
  for (int vector = 0; vector < kVectors; ++vector) {
    const unsigned* from = reinterpret_cast<const unsigned*>(&own[vector]);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const unsigned got = __shfl_sync(0xffffffffU, from[word], source % kWidth, kWidth);
      if (kVectors == 1 || source / kWidth == vector) {
        to[word] = got ^ sign;
      }
    }
  }
  return other;
}

// own * cos + other * sin, each step rounded to S as rotate() has it; `other` brings its sign.
template <typename T, typename S, int kSize>
__device__ __forceinline__ Vec<T, kSize> turn(const Vec<T, kSize>& own, const Vec<T, kSize>& other,
                                              const Vec<S, kSize>& cos, const Vec<S, kSize>& sin) {
  Vec<T, kSize> result;
  if constexpr (sizeof(T) == 2 && sizeof(S) == 2) {
    const auto words = [](const Vec<T, kSize>& vector) {
      return reinterpret_cast<const Packed<T>*>(&vector);
    };
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      reinterpret_cast<Packed<T>*>(&result)[i] = __hadd2_rn(
          __hmul2_rn(words(own)[i], words(cos)[i]), __hmul2_rn(words(other)[i], words(sin)[i]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float straight = round_to<S>(__fmul_rn(to_float(own.data[i]), to_float(cos.data[i])));
      const float crossed = round_to<S>(__fmul_rn(to_float(other.data[i]), to_float(sin.data[i])));
      result.data[i] = from_float<T>(__fadd_rn(straight, crossed));
    }
  }
  return result;
}

}  // namespace graft_kernels::rotary

// Pairs of elements and their rotation, for *_simd.cpp of this package (see common/simd.h).
#pragma once

#include "kernels/common/simd.h"
#include "kernels/rotary/rotary.h"

namespace graft_kernels::GRAFT_ISA {

struct Pair {
  Float first;
  Float second;
};

// Each step rounded to S, the dtype of the tables.
template <bool kInverse, typename S>
static inline Pair rotate(Pair x, Pair cos, Pair sin) {
  const Float first = round_to<S>(x.first * cos.first);
  const Float second = round_to<S>(x.second * cos.second);
  if constexpr (kInverse) {
    return {first + round_to<S>(x.second * sin.second), second - round_to<S>(x.first * sin.first)};
  } else {
    return {first - round_to<S>(x.second * sin.first), second + round_to<S>(x.first * sin.second)};
  }
}

// Where one token's heads of queries or of keys begin, and its rows of the tables.
template <typename T, typename S>
struct TokenHeads {
  const T* in;
  T* out;
  const S* cos;
  const S* sin;
};

// Calls work(which, TokenHeads) for tokens [begin, end), for queries and for keys.
template <typename T, typename S, typename Work>
static inline void for_each_heads(const rotary::Problem& problem, int64_t begin, int64_t end,
                                  const Work& work) {
  for (int64_t token = begin; token < end; ++token) {
    const auto place = [&](const auto* from, const auto& stride) {
      return from + token / problem.length * stride[0] + token % problem.length * stride[1];
    };
    const S* cos = place(static_cast<const S*>(problem.cos.data), problem.cos.stride);
    const S* sin = place(static_cast<const S*>(problem.sin.data), problem.sin.stride);
    for (int which = 0; which < 2; ++which) {
      const rotary::Heads& heads = problem.heads[which];
      const T* out = place(static_cast<const T*>(heads.out), heads.out_stride);
      work(which, TokenHeads<T, S>{place(static_cast<const T*>(heads.in), heads.in_stride),
                                   const_cast<T*>(out), cos, sin});
    }
  }
}

// Every second of 2 * count elements, from the first or the second on; zero beyond.
template <typename T>
static inline Pair load_neighbours(const T* from, int64_t count) {
  Pair pair = {};
  for (int64_t i = 0; i < count; ++i) {
    pair.first[i] = load_partial<T>(from + 2 * i, 1)[0];
    pair.second[i] = load_partial<T>(from + 2 * i + 1, 1)[0];
  }
  return pair;
}

template <typename T>
static inline void store_neighbours(T* to, Pair pair, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    store_partial(to + 2 * i, splat(pair.first[i]), 1);
    store_partial(to + 2 * i + 1, splat(pair.second[i]), 1);
  }
}

}  // namespace graft_kernels::GRAFT_ISA

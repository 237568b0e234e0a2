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

// What the CPU files of this package share: loops over the vectors of a row, and its sums. Included by *_simd.cpp
// alone (see common/simd.h).
#pragma once

#include "kernels/common/simd.h"

namespace graft_kernels::GRAFT_ISA {

// Sums are made in blocks of this many vectors and then of the blocks: the error of a long row stays that of a
// short one.
inline constexpr int64_t kVectorsPerBlock = 128;

// Calls body(column, count) for whole vectors, and once for the tail of fewer elements.
template <typename Body>
static inline void for_each_vector(int64_t columns, const Body& body) {
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    body(column, int64_t{kLanes});
  }
  if (column < columns) {
    body(column, columns - column);
  }
}
// Always in line: a call in a loop would spill every vector around it.
template <typename T>
[[gnu::always_inline]] static inline Float load_some(const T* from, int64_t count) {
  return count == kLanes ? load<T>(from) : load_partial<T>(from, count);
}
template <typename T>
[[gnu::always_inline]] static inline void store_some(T* to, Float value, int64_t count) {
  count == kLanes ? store(to, value) : store_partial(to, value, count);
}

// Zero beyond the first `count` lanes.
static inline Float keep_first(Float value, int64_t count) {
  for (int64_t lane = count; lane < kLanes; ++lane) {
    value[lane] = 0.0F;
  }
  return value;
}

// Sum over a row; term(column, count) gives the addends from column on, zero beyond count.
template <typename Term>
static inline float sum_over_row(int64_t columns, const Term& term) {
  constexpr int kStreams = 4;
  Float total = {};
  int64_t column = 0;
  while (column + kLanes <= columns) {
    const int64_t end =
        columns - column < kVectorsPerBlock * kLanes ? columns : column + kVectorsPerBlock * kLanes;
    Float partial[kStreams] = {};
    for (; column + kStreams * kLanes <= end; column += kStreams * kLanes) {
      for (int stream = 0; stream < kStreams; ++stream) {
        partial[stream] += term(column + stream * kLanes, kLanes);
      }
    }
    for (; column + kLanes <= end; column += kLanes) {
      partial[0] += term(column, kLanes);
    }
    total += (partial[0] + partial[1]) + (partial[2] + partial[3]);
  }
  if (column < columns) {
    total += term(column, columns - column);
  }
  return sum_lanes(total);
}

// Several sums at once; term(column, count, addends) writes the addends of each.
template <int kCount, typename Term>
static inline void sums_over_row(int64_t columns, float (&sums)[kCount], const Term& term) {
  Float streams[2][kCount] = {}, total[kCount] = {};
  int64_t in_block = 0;
  const auto flush = [&] {
    for (int sum = 0; sum < kCount; ++sum) {
      total[sum] += streams[0][sum] + streams[1][sum];
      streams[0][sum] = streams[1][sum] = Float{};
    }
    in_block = 0;
  };
  for_each_vector(columns, [&](int64_t column, int64_t count) {
    Float addends[kCount];
    term(column, count, addends);
    for (int sum = 0; sum < kCount; ++sum) {
      streams[in_block % 2][sum] += addends[sum];
    }
    if (++in_block == kVectorsPerBlock) {
      flush();
    }
  });
  flush();
  for (int sum = 0; sum < kCount; ++sum) {
    sums[sum] = sum_lanes(total[sum]);
  }
}

}  // namespace graft_kernels::GRAFT_ISA

// Dot products of a few float32 rows of x with rows of weight, which are read once from memory.
// Included by *_simd.cpp alone (see simd.h).
//
// Each (row of x, row of weight) pair has one vector of partial sums, filled in the order of k: a
// result has the same bits whatever the number of rows, of threads, or the tile that it falls into.
#pragma once

#include "kernels/common/simd.h"

namespace graft_kernels::GRAFT_ISA {

// Weights are read as kStreams streams far from each other: the processor fetches ahead within a
// page of 4 KiB only, and so in eight pages at once. Read row after row it reaches two thirds of the
// memory's rate on Zen 3. This many bytes ahead is asked for besides.
inline constexpr int64_t kStreams = 8, kAheadBytes = 512;

// Adds kVectors vectors from k on to the sums of every pair.
template <int kVectors, int kRows, int kCount, typename W>
static inline void accumulate(const float* x, int64_t depth, const W* const* streams, int64_t k,
                              Float (&sums)[kRows][kCount]) {
  for (int j = 0; j < kCount; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      const Float factor = load<W>(streams[j] + k + v * kLanes);
      for (int i = 0; i < kRows; ++i) {
        sums[i][j] = multiply_add(load<float>(x + i * depth + k + v * kLanes), factor, sums[i][j]);
      }
    }
  }
}

// kRows rows of x times kCount rows of weight, all sums in registers; calls store(row, stream, sum).
template <int kRows, int kCount, typename W, typename Store>
static inline void dots(const float* x, int64_t depth, const W* const* streams,
                        const Store& store_sum) {
  constexpr int64_t kLine =
      64 / static_cast<int64_t>(sizeof(W));  // of the cache, asked for at once
  Float sums[kRows][kCount] = {};
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
    for (int j = 0; j < kCount; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(streams[j] + k) + kAheadBytes, _MM_HINT_T0);
    }
    accumulate<kLine / kLanes, kRows, kCount>(x, depth, streams, k, sums);
  }
  for (; k + kLanes <= depth; k += kLanes) {
    accumulate<1, kRows, kCount>(x, depth, streams, k, sums);
  }
  if (k < depth) {
    for (int j = 0; j < kCount; ++j) {
      const Float factor = load_partial<W>(streams[j] + k, depth - k);
      for (int i = 0; i < kRows; ++i) {
        sums[i][j] =
            multiply_add(load_partial<float>(x + i * depth + k, depth - k), factor, sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) {
      store_sum(i, j, sum_lanes(sums[i][j]));
    }
  }
}

// The same for all rows of x; the rows of weight stay in the first-level cache meanwhile.
template <int kCount, typename W, typename Store>
static inline void dots_of_rows(const float* x, int64_t rows, int64_t depth,
                                const W* const* streams, const Store& store_sum) {
  constexpr int kTile = kCount >= 2 ? 2 : 1;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    for (int j = 0; j < kCount; j += kTile) {
      dots<4, kTile, W>(x + row * depth, depth, streams + j,
                        [&](int i, int stream, float sum) { store_sum(row + i, j + stream, sum); });
    }
  }
  for (; row < rows; ++row) {
    dots<1, kCount, W>(x + row * depth, depth, streams,
                       [&](int, int stream, float sum) { store_sum(row, stream, sum); });
  }
}

// All rows of x times rows [begin, end) of weight; calls store(row, row of weight, sum).
template <typename W, typename Store>
static inline void dots_of_columns(const float* x, int64_t rows, int64_t depth, const W* weight,
                                   int64_t begin, int64_t end, const Store& store_sum) {
  const int64_t distance = (end - begin) / kStreams;
  for (int64_t column = begin; column < begin + distance; ++column) {
    const W* streams[kStreams];
    for (int64_t j = 0; j < kStreams; ++j) {
      streams[j] = weight + (column + j * distance) * depth;
    }
    dots_of_rows<kStreams, W>(x, rows, depth, streams, [&](int64_t row, int stream, float sum) {
      store_sum(row, column + stream * distance, sum);
    });
  }
  for (int64_t column = begin + kStreams * distance; column < end; ++column) {
    const W* stream = weight + column * depth;
    dots_of_rows<1, W>(x, rows, depth, &stream,
                       [&](int64_t row, int, float sum) { store_sum(row, column, sum); });
  }
}

}  // namespace graft_kernels::GRAFT_ISA

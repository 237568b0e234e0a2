// Dot products of weight rows with a few rows of x. Compiled once per instruction set: see
// common/simd.h.
//
// Each (row of x, row of weight) pair has one vector of partial sums, filled in the order of k: a
// result has the same bits whatever the number of rows, of threads, or the tile that it falls into.

#include "kernels/common/simd.h"
#include "kernels/linear/linear.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using linear::Problem;

// Elements of one cache line, which is asked for at once.
template <typename W>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W));

// Weights are read once from memory, as kStreams streams far from each other: the processor fetches
// ahead within a page of 4 KiB only, and so in eight pages at once. Read row after row it reaches
// two thirds of the memory's rate on Zen 3. This many bytes ahead is asked for besides.
constexpr int64_t kStreams = 8, kAheadBytes = 512;

template <typename W>
float load_one(const W* from) {
  return load_partial<W>(from, 1)[0];
}

template <typename W>
void store_sum(const Problem& problem, int64_t row, int64_t column, Float sum) {
  float value = sum_lanes(sum);
  if (problem.bias != nullptr) {
    value += load_one(static_cast<const W*>(problem.bias) + column);
  }
  store_partial(static_cast<W*>(problem.out) + row * problem.out_stride + column, splat(value), 1);
}

// Adds kVectors vectors from k on to the sums of every pair; `stride` elements from one row of weight
// to the next.
template <int kVectors, int kRows, int kColumns, typename W>
void accumulate(const float* x, const W* weight, int64_t depth, int64_t stride, int64_t k,
                Float (&sums)[kRows][kColumns]) {
  for (int j = 0; j < kColumns; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      const Float factor = load<W>(weight + j * stride + k + v * kLanes);
      for (int i = 0; i < kRows; ++i) {
        sums[i][j] = multiply_add(load<float>(x + i * depth + k + v * kLanes), factor, sums[i][j]);
      }
    }
  }
}

// kRows rows of x times kColumns rows of weight, `distance` rows apart, all sums in registers.
template <int kRows, int kColumns, typename W>
void tile(const Problem& problem, int64_t row, int64_t column, int64_t distance) {
  const int64_t depth = problem.depth, stride = distance * depth;
  const float* x = problem.x + row * depth;
  const W* weight = static_cast<const W*>(problem.weight) + column * depth;
  Float sums[kRows][kColumns] = {};
  int64_t k = 0;
  for (; k + kLine<W> <= depth; k += kLine<W>) {
    for (int j = 0; j < kColumns; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(weight + j * stride + k) + kAheadBytes,
                   _MM_HINT_T0);
    }
    accumulate<kLine<W> / kLanes, kRows, kColumns>(x, weight, depth, stride, k, sums);
  }
  for (; k + kLanes <= depth; k += kLanes) {
    accumulate<1, kRows, kColumns>(x, weight, depth, stride, k, sums);
  }
  if (k < depth) {
    for (int j = 0; j < kColumns; ++j) {
      const Float factor = load_partial<W>(weight + j * stride + k, depth - k);
      for (int i = 0; i < kRows; ++i) {
        sums[i][j] =
            multiply_add(load_partial<float>(x + i * depth + k, depth - k), factor, sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      store_sum<W>(problem, row + i, column + j * distance, sums[i][j]);
    }
  }
}

// All rows of x for kColumns rows of weight, which stay in the first-level cache meanwhile.
template <int kColumns, typename W>
void column_block(const Problem& problem, int64_t column, int64_t distance) {
  constexpr int kTile = kColumns >= 2 ? 2 : 1;
  int64_t row = 0;
  for (; row + 4 <= problem.rows; row += 4) {
    for (int j = 0; j < kColumns; j += kTile) {
      tile<4, kTile, W>(problem, row, column + j * distance, distance);
    }
  }
  for (; row < problem.rows; ++row) {
    tile<1, kColumns, W>(problem, row, column, distance);
  }
}

template <typename W>
void columns(const Problem& problem, int64_t begin, int64_t end) {
  const int64_t distance = (end - begin) / kStreams;
  for (int64_t column = begin; column < begin + distance; ++column) {
    column_block<kStreams, W>(problem, column, distance);
  }
  for (int64_t column = begin + kStreams * distance; column < end; ++column) {
    column_block<1, W>(problem, column, 1);
  }
}

template <typename X>
void widen_span(const X* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(to + i, load<X>(from + i));
  }
  if (i < count) {
    store_partial(to + i, load_partial<X>(from + i, count - i), count - i);
  }
}

}  // namespace

void linear_columns(const Problem& problem, int64_t begin, int64_t end) {
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return columns<float>(problem, begin, end);
    case Dtype::kBfloat16:
      return columns<Bf16>(problem, begin, end);
    case Dtype::kFloat16:
      return columns<Fp16>(problem, begin, end);
  }
}

void linear_widen(Dtype dtype, const void* from, float* to, int64_t count) {
  switch (dtype) {
    case Dtype::kFloat32:
      return widen_span(static_cast<const float*>(from), to, count);
    case Dtype::kBfloat16:
      return widen_span(static_cast<const Bf16*>(from), to, count);
    case Dtype::kFloat16:
      return widen_span(static_cast<const Fp16*>(from), to, count);
  }
}

}  // namespace graft_kernels::GRAFT_ISA

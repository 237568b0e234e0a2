// Attention of few rows over a cache, with windows, sinks and its log-sum-exp, for the vectors of one instruction set.
// Compiled once per set: see common/simd.h.

#include <type_traits>

#include "kernels/attention/attention_passes_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

// A block of keys or values, zeros behind the last.
template <typename T>
void load_keys(const Head& head, const void* from, const int64_t (&stride)[3], int64_t first,
               int64_t keys, float* to) {
  const int64_t width = padded(head.problem.base.head_dim);
  widen_rows(head.key<const T>(from, stride, first), stride[2], keys, head.problem.base.head_dim,
             to);
  std::memset(to + keys * width, 0,
              static_cast<size_t>((kBlockKeys - keys) * width) * sizeof(float));
}

struct ForwardScratch {
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float block[kBlockKeys * kMaxHeadDim];
  alignas(64) float scores[kMaxTaskRows * kBlockKeys];
  float held[kMaxTaskRows][2 + kMaxHeadDim];  // largest score, sum of weights, weighted values
};

template <typename T>
void forward_block(const TrainProblem& problem, int64_t block) {
  ForwardScratch s;
  const Problem& base = problem.base;
  const Head head(problem, block / base.row_blocks());
  const int64_t first_row = block % base.row_blocks() * kMaxTaskRows;
  const int64_t rows = clamp(base.rows() - first_row, kMaxTaskRows);
  const Span sight = keys_of(head, first_row, rows);
  const int64_t width = padded(base.head_dim);
  for (int64_t row = 0; row < rows; ++row) {
    widen_rows(head.row<const T>(base.query, base.query_stride, first_row + row), 0, 1,
               base.head_dim, s.query + row * width);
    s.held[row][0] = kMinusInfinity;
    std::memset(s.held[row] + 1, 0, static_cast<size_t>(base.head_dim + 1) * sizeof(float));
  }
  constexpr Span kColumns{0, kBlockKeys};
  for (int64_t first = sight.begin; first < sight.end; first += kBlockKeys) {
    const int64_t keys = clamp(sight.end - first, kBlockKeys);
    load_keys<T>(head, base.key, base.key_stride, first, keys, s.block);
    multiply_keys(s.query, rows, s.block, width, s.scores);
    load_keys<T>(head, base.value, base.value_stride, first, keys, s.block);
    for (int64_t row = 0; row < rows; ++row) {
      float* scores = s.scores + row * kBlockKeys;
      bend(base, kColumns, scores, nullptr);
      if (base.mask != nullptr) {
        add_row_mask<T>(head, first_row + row, first, kColumns, scores);
      }
      hide(keys_of(head, first_row + row), first, kColumns, scores);
      weigh(scores, s.held[row], base.head_dim);
      add_values(scores, s.block, keys, base.head_dim, s.held[row] + 2);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    finish_row<T>(head, first_row + row, s.held[row][0], s.held[row][1], s.held[row] + 2);
  }
}

}  // namespace

void attention_train_forward(const TrainProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.base.dtype, [&](auto* type) {
    for (int64_t block = begin; block < end; ++block) {
      forward_block<std::remove_pointer_t<decltype(type)>>(problem, block);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA

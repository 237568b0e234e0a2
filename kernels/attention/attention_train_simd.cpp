// Attention of few rows over a cache, with windows, sinks and its log-sum-exp, for the vectors of one instruction set.
// Compiled once per set: see common/simd.h.

#include <type_traits>

#include <math.h>

#include "kernels/attention/attention_rows_simd.h"
#include "kernels/attention/attention_train.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::Problem;
using attention::TrainProblem;

// Rows [first, first + count) of one batch entry and key head; row r is query r / groups and head
// r % groups of the key head.
struct Rows {
  int64_t batch, key_head, first, count;
};

struct Sight {
  int64_t begin, end;  // keys that a query sees
};

Sight sight_of(const TrainProblem& problem, int64_t query) {
  const Problem& base = problem.base;
  const int64_t own = base.keys - base.queries + query;
  Sight sight{0, base.keys};
  if (base.causal) {
    sight.end = own + 1 < 0 ? 0 : own + 1;
  }
  if (problem.window > 0) {
    sight.begin = own - problem.window + 1 < 0 ? 0 : own - problem.window + 1;
  }
  return sight;
}

Rows rows_of(const Problem& base, int64_t block) {
  const int64_t head = block / base.row_blocks(), first = block % base.row_blocks() * kMaxTaskRows;
  const int64_t left = base.rows() - first;
  return {head / base.key_heads, head % base.key_heads, first,
          left < kMaxTaskRows ? left : kMaxTaskRows};
}

// Keys that any row of the block sees.
Sight sight_of(const TrainProblem& problem, const Rows& rows) {
  const int64_t groups = problem.base.groups;
  return {sight_of(problem, rows.first / groups).begin,
          sight_of(problem, (rows.first + rows.count - 1) / groups).end};
}

template <typename T>
T* element(const void* from, const int64_t (&stride)[3], int64_t batch, int64_t a, int64_t b) {
  return static_cast<T*>(const_cast<void*>(from)) + batch * stride[0] + a * stride[1] +
         b * stride[2];
}

float* statistic(const TrainProblem& problem, float* from, const Rows& rows, int64_t row) {
  const int64_t groups = problem.base.groups, at = rows.first + row;
  return from + rows.batch * problem.lse_stride[0] +
         (rows.key_head * groups + at % groups) * problem.lse_stride[1] + at / groups;
}

// Rows of queries, or of what is laid out like them, as float32.
template <typename T>
void load_rows(const Problem& base, const void* from, const int64_t (&stride)[3], const Rows& rows,
               float* to) {
  const int64_t width = padded(base.head_dim);
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t at = rows.first + row;
    widen_rows(element<T>(from, stride, rows.batch, at / base.groups,
                          rows.key_head * base.groups + at % base.groups),
               0, 1, base.head_dim, to + row * width);
  }
}

// A block of keys or values, zeros behind the last.
template <typename T>
void load_keys(const Problem& base, const void* from, const int64_t (&stride)[3], const Rows& rows,
               int64_t first, int64_t keys, float* to) {
  const int64_t width = padded(base.head_dim);
  widen_rows(element<T>(from, stride, rows.batch, rows.key_head, first), stride[2], keys,
             base.head_dim, to);
  std::memset(to + keys * width, 0,
              static_cast<size_t>((kBlockKeys - keys) * width) * sizeof(float));
}

// Scale, cap and masks of one row; -infinity where it may not see. slopes: derivative of the cap.
template <typename T>
void finish_row(const TrainProblem& problem, const Rows& rows, int64_t row, int64_t first,
                int64_t keys, float* scores, float* slopes) {
  const Problem& base = problem.base;
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    Float score = load(scores + j) * splat(base.scale), slope = splat(1.0F);
    if (base.softcap > 0.0F) {
      const Float bent = tanh(score * splat(1.0F / base.softcap));
      score = splat(base.softcap) * bent;
      slope = splat(1.0F) - bent * bent;
    }
    store(scores + j, score);
    store(slopes + j, slope);
  }
  if (base.mask != nullptr) {
    const int64_t at = rows.first + row, head = rows.key_head * base.groups + at % base.groups;
    const auto mask_of = [&]<typename M>(const M*) {
      return element<const M>(base.mask, base.mask_stride, rows.batch, head, at / base.groups) +
             first;
    };
    base.float_mask ? add_mask(mask_of(static_cast<const float*>(nullptr)), keys, scores)
                    : add_mask(mask_of(static_cast<const T*>(nullptr)), keys, scores);
  }
  const Sight sight = sight_of(problem, (rows.first + row) / base.groups);
  for (int64_t j = 0; j < kBlockKeys; ++j) {
    if (first + j < sight.begin || first + j >= sight.end || j >= keys) {
      scores[j] = kMinusInfinity;
    }
  }
}

// The row's result and log-sum-exp out of [largest, sum, weighted values].
template <typename T>
void finish_forward(const TrainProblem& problem, const Rows& rows, int64_t row, float* held) {
  const Problem& base = problem.base;
  const int64_t at = rows.first + row, head = rows.key_head * base.groups + at % base.groups;
  float largest = held[0], sum = held[1], factor = 1.0F;
  if (problem.sinks.values != nullptr) {
    const float sink =
        problem.sinks.is_float
            ? static_cast<const float*>(problem.sinks.values)[head]
            : load_partial<T>(static_cast<const T*>(problem.sinks.values) + head, 1)[0];
    const float together = sink > largest ? sink : largest;
    if (together != kMinusInfinity) {
      factor = largest == kMinusInfinity ? 0.0F : exp(splat(largest - together))[0];
      sum = sum * factor + exp(splat(sink - together))[0];
      largest = together;
    }
  }
  const float inverse = sum == 0.0F ? 0.0F : factor / sum;
  *statistic(problem, problem.lse, rows, row) = sum == 0.0F ? kMinusInfinity : largest + logf(sum);
  T* out = element<T>(base.out, base.out_stride, rows.batch, at / base.groups, head);
  store_scaled(out, held + 2, inverse, base.head_dim);
}

struct ForwardScratch {
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float block[kBlockKeys * kMaxHeadDim];
  alignas(64) float scores[kMaxTaskRows * kBlockKeys];
  alignas(64) float slopes[kBlockKeys];
  float held[kMaxTaskRows][2 + kMaxHeadDim];
};

template <typename T>
void forward_block(const TrainProblem& problem, int64_t block) {
  ForwardScratch s;
  const Problem& base = problem.base;
  const Rows rows = rows_of(base, block);
  const Sight sight = sight_of(problem, rows);
  const int64_t width = padded(base.head_dim);
  load_rows<T>(base, base.query, base.query_stride, rows, s.query);
  for (int64_t row = 0; row < rows.count; ++row) {
    s.held[row][0] = kMinusInfinity;
    std::memset(s.held[row] + 1, 0, static_cast<size_t>(base.head_dim + 1) * sizeof(float));
  }
  for (int64_t first = sight.begin; first < sight.end; first += kBlockKeys) {
    const int64_t left = sight.end - first, keys = left < kBlockKeys ? left : kBlockKeys;
    load_keys<T>(base, base.key, base.key_stride, rows, first, keys, s.block);
    multiply_keys(s.query, rows.count, s.block, width, s.scores);
    load_keys<T>(base, base.value, base.value_stride, rows, first, keys, s.block);
    for (int64_t row = 0; row < rows.count; ++row) {
      float* scores = s.scores + row * kBlockKeys;
      finish_row<T>(problem, rows, row, first, keys, scores, s.slopes);
      weigh(scores, s.held[row], base.head_dim);
      add_values(scores, s.block, keys, base.head_dim, s.held[row] + 2);
    }
  }
  for (int64_t row = 0; row < rows.count; ++row) {
    finish_forward<T>(problem, rows, row, s.held[row]);
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

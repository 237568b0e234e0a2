// Attention for training with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.
//
// The backward makes scores and weights again from the log-sum-exp (Dao et al. 2022, algorithm 4): once
// per block of rows for the gradient of queries, once per block of keys for those of keys and values.
// Each result has one writer and one order of sums.

#include <type_traits>

#include <math.h>

#include "kernels/attention/attention_rows_simd.h"
#include "kernels/attention/attention_train.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::kGradKeys;
using attention::Problem;
using attention::TrainProblem;

static_assert(kGradKeys == kBlockKeys);

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

struct BackwardScratch {
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float grad_out[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float key[kBlockKeys * kMaxHeadDim];
  alignas(64) float value[kBlockKeys * kMaxHeadDim];
  alignas(64) float weights[kMaxTaskRows * kBlockKeys];
  alignas(64) float grads[kMaxTaskRows * kBlockKeys];
  alignas(64) float slopes[kBlockKeys];
};

// weights: exp(score - lse); grads: of the products query . key, but for the scale. Both are
// kMaskedWeight where a row may not see: what lies there is not read.
template <typename T>
void make_weights(const TrainProblem& problem, const Rows& rows, int64_t first, int64_t keys,
                  BackwardScratch& s) {
  const int64_t width = padded(problem.base.head_dim);
  multiply_keys(s.query, rows.count, s.key, width, s.weights);
  multiply_keys(s.grad_out, rows.count, s.value, width, s.grads);
  for (int64_t row = 0; row < rows.count; ++row) {
    float* weights = s.weights + row * kBlockKeys;
    float* grads = s.grads + row * kBlockKeys;
    finish_row<T>(problem, rows, row, first, keys, weights, s.slopes);
    const float lse = *statistic(problem, problem.lse, rows, row);
    const float delta = *statistic(problem, problem.delta, rows, row);
    for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
      const Float score = load(weights + j);
      const Int hidden = (score == splat(kMinusInfinity)) | (splat(lse) == splat(kMinusInfinity));
      const Float weight = exp(score - splat(lse));
      const Float grad = weight * (load(grads + j) - splat(delta)) * load(s.slopes + j);
      store(weights + j, select(hidden, splat(kMaskedWeight), weight));
      // A gradient that is zero by itself must not look like one that is hidden.
      store(grads + j, select(hidden, splat(kMaskedWeight), grad + splat(0.0F)));
    }
  }
}

template <typename T>
void fill_delta(const TrainProblem& problem, const Rows& rows, const float* grad_out) {
  const Problem& base = problem.base;
  const int64_t width = padded(base.head_dim);
  alignas(64) float out[kMaxHeadDim];
  for (int64_t row = 0; row < rows.count; ++row) {
    load_rows<T>(base, base.out, base.out_stride, {rows.batch, rows.key_head, rows.first + row, 1},
                 out);
    Float sum = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      sum = multiply_add(load(out + i), load(grad_out + row * width + i), sum);
    }
    *statistic(problem, problem.delta, rows, row) = sum_lanes(sum);
  }
}

template <typename T>
void grad_queries_block(const TrainProblem& problem, int64_t block) {
  BackwardScratch s;
  const Problem& base = problem.base;
  const Rows rows = rows_of(base, block);
  const Sight sight = sight_of(problem, rows);
  const int64_t width = padded(base.head_dim);
  alignas(64) float sums[kMaxTaskRows * kMaxHeadDim] = {};
  load_rows<T>(base, base.query, base.query_stride, rows, s.query);
  load_rows<T>(base, problem.grad_out, problem.grad_out_stride, rows, s.grad_out);
  fill_delta<T>(problem, rows, s.grad_out);
  for (int64_t first = sight.begin; first < sight.end; first += kBlockKeys) {
    const int64_t left = sight.end - first, keys = left < kBlockKeys ? left : kBlockKeys;
    load_keys<T>(base, base.key, base.key_stride, rows, first, keys, s.key);
    load_keys<T>(base, base.value, base.value_stride, rows, first, keys, s.value);
    make_weights<T>(problem, rows, first, keys, s);
    for (int64_t row = 0; row < rows.count; ++row) {
      add_values(s.grads + row * kBlockKeys, s.key, keys, base.head_dim, sums + row * width);
    }
  }
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t at = rows.first + row;
    T* to = element<T>(problem.grad_query, problem.grad_query_stride, rows.batch, at / base.groups,
                       rows.key_head * base.groups + at % base.groups);
    store_scaled(to, sums + row * width, base.scale, base.head_dim);
  }
}

// One row of weights per key.
void turn(const float* weights, int64_t rows, int64_t key, float* turned) {
  for (int64_t row = 0; row < rows; ++row) {
    turned[row] = weights[row * kBlockKeys + key];
  }
}

template <typename T>
void grad_keys_block(const TrainProblem& problem, int64_t task) {
  BackwardScratch s;
  const Problem& base = problem.base;
  const int64_t head = task / problem.key_blocks(), width = padded(base.head_dim);
  const int64_t first = task % problem.key_blocks() * kBlockKeys;
  const int64_t left = base.keys - first, keys = left < kBlockKeys ? left : kBlockKeys;
  Rows rows{head / base.key_heads, head % base.key_heads, 0, 0};
  alignas(64) float key_sums[kBlockKeys * kMaxHeadDim] = {},
                                          value_sums[kBlockKeys * kMaxHeadDim] = {};
  load_keys<T>(base, base.key, base.key_stride, rows, first, keys, s.key);
  load_keys<T>(base, base.value, base.value_stride, rows, first, keys, s.value);
  for (; rows.first < base.rows(); rows.first += kMaxTaskRows) {
    const int64_t rest = base.rows() - rows.first;
    rows.count = rest < kMaxTaskRows ? rest : kMaxTaskRows;
    const Sight sight = sight_of(problem, rows);
    if (sight.end <= first || sight.begin >= first + keys) {
      continue;
    }
    load_rows<T>(base, base.query, base.query_stride, rows, s.query);
    load_rows<T>(base, problem.grad_out, problem.grad_out_stride, rows, s.grad_out);
    make_weights<T>(problem, rows, first, keys, s);
    float turned[kMaxTaskRows];
    for (int64_t key = 0; key < keys; ++key) {
      turn(s.weights, rows.count, key, turned);
      add_values(turned, s.grad_out, rows.count, base.head_dim, value_sums + key * width);
      turn(s.grads, rows.count, key, turned);
      add_values(turned, s.query, rows.count, base.head_dim, key_sums + key * width);
    }
  }
  T* grad_key =
      element<T>(problem.grad_key, problem.grad_key_stride, rows.batch, rows.key_head, first);
  T* grad_value =
      element<T>(problem.grad_value, problem.grad_value_stride, rows.batch, rows.key_head, first);
  for (int64_t key = 0; key < keys; ++key) {
    store_scaled(grad_key + key * problem.grad_key_stride[2], key_sums + key * width, base.scale,
                 base.head_dim);
    store_scaled(grad_value + key * problem.grad_value_stride[2], value_sums + key * width, 1.0F,
                 base.head_dim);
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

void attention_grad_queries(const TrainProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.base.dtype, [&](auto* type) {
    for (int64_t block = begin; block < end; ++block) {
      grad_queries_block<std::remove_pointer_t<decltype(type)>>(problem, block);
    }
  });
}

void attention_grad_keys(const TrainProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.base.dtype, [&](auto* type) {
    for (int64_t task = begin; task < end; ++task) {
      grad_keys_block<std::remove_pointer_t<decltype(type)>>(problem, task);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA

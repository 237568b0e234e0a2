// What the passes of attention on the CPU share: places, what a row sees, scores before the softmax. Included by
// *_simd.cpp alone (see common/simd.h).
#pragma once

#include <math.h>

#include "kernels/attention/attention_pack_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::Problem;
using attention::Round;
using attention::TrainProblem;

template <typename T>
inline T* element(const void* from, const int64_t (&stride)[3], int64_t batch, int64_t a,
                  int64_t b) {
  return static_cast<T*>(const_cast<void*>(from)) + batch * stride[0] + a * stride[1] +
         b * stride[2];
}

// One batch entry and key head, of all or of a round. Row r is query r / groups and head r % groups of the key head.
struct Head {
  const TrainProblem& problem;
  int64_t batch, key_head;

  Head(const TrainProblem& of, int64_t index)
      : problem(of), batch(index / of.base.key_heads), key_head(index % of.base.key_heads) {}
  Head(const Round& round, int64_t index) : Head(*round.problem, round.first_head + index) {}
  int64_t query_of(int64_t row) const { return row / problem.base.groups; }
  int64_t head_of(int64_t row) const {
    return key_head * problem.base.groups + row % problem.base.groups;
  }
  template <typename T>
  T* row(const void* from, const int64_t (&stride)[3], int64_t row) const {
    return element<T>(from, stride, batch, query_of(row), head_of(row));
  }
  template <typename T>
  T* key(const void* from, const int64_t (&stride)[3], int64_t key) const {
    return element<T>(from, stride, batch, key_head, key);
  }
  float* statistic(float* from, int64_t row) const {
    return from + batch * problem.lse_stride[0] + head_of(row) * problem.lse_stride[1] +
           query_of(row);
  }
};

struct Span {
  int64_t begin, end;
  bool is_empty() const { return begin >= end; }
};

inline int64_t clamp(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

// Keys that a row sees.
inline Span keys_of(const Head& head, int64_t row) {
  const TrainProblem& problem = head.problem;
  const int64_t keys = problem.base.keys;
  const int64_t own = keys - problem.base.queries + head.query_of(row);
  return {problem.window > 0 ? clamp(own - problem.window + 1, keys) : 0,
          problem.base.causal ? clamp(own + 1, keys) : keys};
}

// Keys that any of rows [first, first + count) sees.
inline Span keys_of(const Head& head, int64_t first, int64_t count) {
  return {keys_of(head, first).begin, keys_of(head, first + count - 1).end};
}

// Rows that see a key.
inline Span rows_of(const Head& head, int64_t key) {
  const TrainProblem& problem = head.problem;
  const Problem& base = problem.base;
  const int64_t own = key - (base.keys - base.queries);  // the query whose place the key has
  return {(base.causal ? clamp(own, base.queries) : 0) * base.groups,
          (problem.window > 0 ? clamp(own + problem.window, base.queries) : base.queries) *
              base.groups};
}

// Columns [begin, end) of a block of items that begins at `first`, in whole steps of 32.
inline Span columns_of(Span items, int64_t first) {
  const int64_t begin = clamp(items.begin - first, kPassItems) / 32 * 32;
  const int64_t end = (clamp(items.end - first, kPassItems) + 31) / 32 * 32;
  return {begin, end};
}

// -infinity where the columns are none of `seen`.
inline void hide(Span seen, int64_t first, Span columns, float* scores) {
  const int64_t begin = seen.begin - first, end = seen.end - first;
  for (int64_t j = columns.begin; j < columns.end && j < begin; ++j) {
    scores[j] = kMinusInfinity;
  }
  for (int64_t j = end > columns.begin ? end : columns.begin; j < columns.end; ++j) {
    scores[j] = kMinusInfinity;
  }
}

inline Float larger(Float score, Float most) {  // a NaN is not larger
#if defined(__AVX512F__)
  return (Float)_mm512_max_ps((__m512)score, (__m512)most);
#elif defined(__AVX2__)
  return (Float)_mm256_max_ps((__m256)score, (__m256)most);
#else
  return (Float)_mm_max_ps((__m128)score, (__m128)most);
#endif
}

// A row's reference follows its largest score only where that has grown by more than this, in units of the exponential:
// weights stay below 2^8 and sums are rarely scaled anew.
constexpr float kSlack = 5.0F;

// Whether scores need more than their scale before the softmax.
inline bool is_plain(const Problem& base) {
  return base.mask == nullptr && !(base.softcap > 0.0F) && base.scale > 0.0F;
}

// Scale and cap. slopes: derivative of the cap, or null.
inline void bend(const Problem& base, Span columns, float* scores, float* slopes) {
  for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
    Float score = load(scores + j) * splat(base.scale), slope = splat(1.0F);
    if (base.softcap > 0.0F) {
      const Float bent = tanh(score * splat(1.0F / base.softcap));
      score = splat(base.softcap) * bent;
      slope = splat(1.0F) - bent * bent;
    }
    store(scores + j, score);
    if (slopes != nullptr) {
      store(slopes + j, slope);
    }
  }
}

// Adds the mask of a row to keys [first + columns.begin, first + columns.end).
template <typename T>
inline void add_row_mask(const Head& head, int64_t row, int64_t first, Span columns,
                         float* scores) {
  const Problem& base = head.problem.base;
  const int64_t left = base.keys - first, end = left < columns.end ? left : columns.end;
  const auto add = [&]<typename M>(const M*) {
    const M* mask = element<const M>(base.mask, base.mask_stride, head.batch, head.head_of(row),
                                     head.query_of(row));
    add_mask(mask + first + columns.begin, end - columns.begin, scores + columns.begin);
  };
  base.float_mask ? add(static_cast<const float*>(nullptr)) : add(static_cast<const T*>(nullptr));
}

// The row's result and log-sum-exp.
template <typename T>
inline void finish_row(const Head& head, int64_t row, float largest, float total,
                       const float* sums) {
  const TrainProblem& problem = head.problem;
  const int64_t at = head.head_of(row);
  float factor = 1.0F;
  if (problem.sinks.values != nullptr) {
    const float sink =
        problem.sinks.is_float
            ? static_cast<const float*>(problem.sinks.values)[at]
            : load_partial<T>(static_cast<const T*>(problem.sinks.values) + at, 1)[0];
    const float together = sink > largest ? sink : largest;
    if (together != kMinusInfinity) {
      factor = largest == kMinusInfinity ? 0.0F : exp(splat(largest - together))[0];
      total = total * factor + exp(splat(sink - together))[0];
      largest = together;
    }
  }
  if (problem.lse != nullptr) {
    *head.statistic(problem.lse, row) = total == 0.0F ? kMinusInfinity : largest + logf(total);
  }
  store_scaled(head.row<T>(problem.base.out, problem.base.out_stride, row), sums,
               total == 0.0F ? 0.0F : factor / total, problem.base.head_dim);
}

// The exponential of a form: in float32 e^x to 2 units in the last place; where weights become bfloat16, 2^x to 2^-18.
template <typename Form>
struct Exponential {
  static constexpr float kUnit = 1.0F;  // what a score is multiplied with before
  static inline Float of(Float x) { return exp(x); }
};

#if defined(__AVX512F__)
struct QuickExponential {
  static constexpr float kUnit = 1.44269504F;
  static inline Float of(Float x) {
    const __m512 rest = _mm512_reduce_ps((__m512)x, 1);  // x - floor(x); 0 for -infinity
    __m512 poly = _mm512_set1_ps(1.353417151e-2F);
    poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(5.201145262e-2F));
    poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(2.414427549e-1F));
    poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(6.930038333e-1F));
    poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(1.000002623F));
    return (Float)_mm512_scalef_ps(poly, (__m512)x);
  }
};
template <>
struct Exponential<PairForm> : QuickExponential {};
template <>
struct Exponential<TileForm> : QuickExponential {};
#endif

// The left side of a product: `count` rows, item(row) being where one lies, and zeros behind the last.
template <typename Form, typename T, typename Item>
inline void stage_rows(const Item& item, int64_t count, int64_t head_dim, typename Form::Word* to) {
  const int64_t words = words_of<Form>(head_dim);
  for (int64_t row = 0; row < kPassRows; ++row, to += words) {
    if (row < count) {
      stage_row<Form, T>(item(row), head_dim, to);
    } else {
      std::memset(to, 0, static_cast<size_t>(words) * sizeof(*to));
    }
  }
}

// A stored weight as float32.
inline float weight_at(const float* weights, int64_t column) { return weights[column]; }
inline float weight_at(const uint32_t* weights, int64_t column) {
  const uint32_t bits = weights[column / 2] >> (column % 2 * 16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline bool is_masked(float weight) { return __builtin_signbit(weight) != 0 && weight == 0.0F; }

// What a block's weights are multiplied with: its packed items, and where item j of them lies.
template <typename Form, typename T, typename Item>
struct Items {
  const typename Form::Word* packed;
  bool hazard;    // a packed number is not finite
  int64_t count;  // of the items from the block's first on
  const Item& item;
};

// sums += weights . items, one at a time; weights of kMaskedWeight are not multiplied.
template <typename Form, typename T, typename Item>
void add_carefully(const typename Form::Word* weights, int64_t rows, Span columns,
                   const Items<Form, T, Item>& items, int64_t head_dim, float* sums) {
  constexpr int64_t kWeightWords = kPassItems / Form::kElements;
  const int64_t width = panels_of<Form>(head_dim) * kLanes;
  alignas(64) float wide[kMaxHeadDim];
  for (int64_t j = columns.begin; j < columns.end && j < items.count; ++j) {
    widen_rows<T>(items.item(j), 0, 1, head_dim, wide);
    for (int64_t row = 0; row < rows; ++row) {
      const float weight = weight_at(weights + row * kWeightWords, j);
      float* to = sums + row * width;
      for (int64_t i = 0; i < padded(head_dim) && !is_masked(weight); i += kLanes) {
        store(to + i, multiply_add(splat(weight), load(wide + i), load(to + i)));
      }
    }
  }
}

// sums += weights . items for columns of a block. Where a packed number is not finite, items that are hidden from all
// rows are packed anew as zeros; if a row sees such a number, weights are multiplied one at a time.
template <typename Form, typename T, typename Item>
void add_items(const typename Form::Word* weights, int64_t rows, Span columns,
               const Items<Form, T, Item>& items, int64_t head_dim, float* sums) {
  using Word = typename Form::Word;
  constexpr int64_t kWeightWords = kPassItems / Form::kElements;
  const int64_t panels = panels_of<Form>(head_dim), skipped = columns.begin / Form::kElements;
  const auto add = [&](const Word* packed) {
    multiply<Form, true>(
        {weights + skipped, kWeightWords, packed + skipped * kLanes, kWeightWords * kLanes,
         (columns.end - columns.begin) / Form::kElements, sums, panels * kLanes},
        rows, panels);
  };
  if (!items.hazard) {
    return add(items.packed);
  }
  static const T zeros[kMaxHeadDim] = {};
  alignas(64) Word packed[kPassItems * kMaxHeadDim / Form::kElements];
  uint8_t hazard = 0;
  const auto seen_item = [&](int64_t j) {
    bool hidden = true;
    for (int64_t row = 0; row < rows && j >= columns.begin && j < columns.end; ++row) {
      hidden &= is_masked(weight_at(weights + row * kWeightWords, j));
    }
    return hidden ? zeros : items.item(j);
  };
  pack_block<Form, T>(seen_item, items.count, head_dim, nullptr, packed, &hazard);
  hazard == 0 ? add(packed) : add_carefully<Form, T>(weights, rows, columns, items, head_dim, sums);
}

template <typename T>
inline T* block_of(const Round& round, const attention::Operand& operand, int64_t blocks,
                   int64_t head, int64_t block) {
  return reinterpret_cast<T*>(operand.panels + (head * blocks + block) * round.block_bytes());
}

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA

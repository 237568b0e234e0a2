// The forward of attention with many rows, for the vectors of one instruction set. Compiled once per set: see
// common/simd.h.
//
// A task is a block of rows of one head. It goes over the blocks of keys that its rows see: scores, softmax against
// the running maximum (Milakov and Gimelshein 2018; Dao 2023), weighted sum of values. Weights are rounded to bfloat16
// where values are multiplied as bfloat16.

#include "kernels/attention/attention_passes_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

// What a block of rows holds while it goes over the keys; with heads of 64 and the panels under way it fits into a
// first-level cache of 48 KiB. Beyond that tiles are stored at a third of their rate.
template <typename Form>
struct ForwardScratch {
  using Word = typename Form::Word;
  static constexpr int64_t kWeightWords = kPassItems / Form::kElements;  // of a row
  alignas(64) Word query[kPassRows * kMaxHeadDim / Form::kElements];
  alignas(64) float scores[kPassRows * kPassItems];
  alignas(64) Word weights[kPassRows * kWeightWords];
  alignas(64) float sums[kPassRows * kMaxHeadDim];
  alignas(64) float totals[kPassRows * kLanes];  // sums of weights, lane by lane
  alignas(64) float references[kPassRows];  // largest score of a row, in units of the exponential
  alignas(64) float offsets[kPassRows];     // what is added to its scores: -reference, or 0
  alignas(64) float factors[kPassRows];     // what was held so far is multiplied with these
  Span seen[kPassRows];                     // keys of a row
};

// The largest lane of each of kLanes vectors.
inline Float largest_lanes(const Float (&most)[kLanes]) {
#if defined(__AVX512F__)
  __m512 four[8], eight[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = (__m512)most[2 * i], b = (__m512)most[2 * i + 1];
    four[i] = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
    eight[i] = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto halve = [](__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return (Float)halve(halve(eight[0], eight[1]), halve(eight[2], eight[3]));
#else
  Float result;
  for (int row = 0; row < kLanes; ++row) {
    float largest = most[row][0];
    for (int lane = 1; lane < kLanes; ++lane) {
      largest = most[row][lane] > largest ? most[row][lane] : largest;
    }
    result[row] = largest;
  }
  return result;
#endif
}

// The columns of most blocks: a number of steps that the compiler knows.
struct WholeBlock {
  static constexpr int64_t begin = 0, end = kPassItems;
};

template <bool kMark, typename Exp>
inline Float weight_of(Float score, Float factor, Float reference) {
  const Float weight = Exp::of(multiply_add(score, factor, reference));
  return kMark ? select(score == splat(kMinusInfinity), splat(kMaskedWeight), weight) : weight;
}

// Weights of the scores of one row, in the form of the next product; returns their sums, lane by lane.
template <typename Form, bool kMark, typename Columns>
inline Float store_weights(const float* scores, Columns columns, float factor, float offset,
                           typename Form::Word* weights) {
  using Exp = Exponential<Form>;
  const Float scale = splat(factor), shift = splat(offset);
  Float total = {};
  if constexpr (Form::kElements == 1) {
    for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
      const Float weight = weight_of<kMark, Exp>(load(scores + j), scale, shift);
      total = total + weight;
      store(weights + j, weight);
    }
  } else {
#if defined(__AVX512F__)
#pragma GCC unroll 4
    for (int64_t j = columns.begin; j < columns.end; j += 2 * kLanes) {
      const Float low = weight_of<kMark, Exp>(load(scores + j), scale, shift);
      const Float high = weight_of<kMark, Exp>(load(scores + j + kLanes), scale, shift);
      total = total + (low + high);
      _mm512_storeu_si512(weights + (j >> 1), to_bf16(low, high));
    }
#endif
  }
  return total;
}

// Moves the references of `count` rows towards the largest score so far.
template <typename Form, typename Columns>
inline void find_references(ForwardScratch<Form>& s, int64_t count, Columns columns, float factor) {
  for (int64_t first = 0; first < count; first += kLanes) {
    Float most[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      const float* row = s.scores + (first + i) * kPassItems;
      most[i] = splat(kMinusInfinity);
#pragma GCC unroll 16
      for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
        most[i] = larger(load(row + j), most[i]);
      }
    }
    const Float before = load(s.references + first);
    Float largest = larger(largest_lanes(most) * splat(factor), before);
    largest = select(largest <= before + splat(kSlack), before, largest);
    // Where everything is masked so far, any finite reference gives zero weights.
    const Float offset = select(largest == splat(kMinusInfinity), Float{}, -largest);
    store(s.references + first, largest);
    store(s.offsets + first, offset);
    store(s.factors + first,
          select(largest == before, splat(1.0F), Exponential<Form>::of(before + offset)));
  }
}

// Masks of rows where they are asked for; what a row does not see becomes -infinity.
template <typename Form, typename T>
inline void mask_rows(const Head& head, const ForwardScratch<Form>& s, Span rows, int64_t first_key,
                      Span columns, float* scores) {
  const Problem& base = head.problem.base;
  const bool plain = is_plain(base);
  const bool open = s.seen[rows.end - rows.begin - 1].begin <= first_key + columns.begin &&
                    s.seen[0].end >= first_key + columns.end;  // all rows see all columns
  for (int64_t row = rows.begin; row < rows.end && !(plain && open); ++row, scores += kPassItems) {
    if (!plain) {
      bend(base, columns, scores, nullptr);
      if (base.mask != nullptr) {
        add_row_mask<T>(head, row, first_key, columns, scores);
      }
    }
    hide(s.seen[row - rows.begin], first_key, columns, scores);
  }
}

// Scores of `count` rows become weights; what the rows held so far is scaled to the new references.
template <typename Form, typename Columns>
inline void weigh_rows(ForwardScratch<Form>& s, int64_t count, Columns columns, float factor,
                       int64_t width, bool mark) {
  for (int64_t row = 0; row < count; ++row) {
    const float* scores = s.scores + row * kPassItems;
    auto* weights = s.weights + row * s.kWeightWords;
    float* totals = s.totals + row * kLanes;
    const Float total =
        mark || Form::kElements == 1
            ? store_weights<Form, true>(scores, columns, factor, s.offsets[row], weights)
            : store_weights<Form, false>(scores, columns, factor, s.offsets[row], weights);
    store(totals, multiply_add(load(totals), splat(s.factors[row]), total));
    if (s.factors[row] != 1.0F) {
      scale_row(s.sums + row * width, s.factors[row], width);
    }
  }
}

// A block of rows on its way over blocks of keys.
template <typename Form, typename T>
class ForwardPass {
  using Word = typename Form::Word;

 public:
  ForwardPass(const Round& round, int64_t head_index, int64_t pass)
      : round_(round),
        head_(round, head_index),
        base_(head_.problem.base),
        head_index_(head_index),
        rows_{pass * kPassRows, clamp((pass + 1) * kPassRows, base_.rows())},
        keys_(keys_of(head_, rows_.begin, rows_.end - rows_.begin)) {
    stage_rows<Form, T>(
        [&](int64_t row) {
          return head_.template row<const T>(base_.query, base_.query_stride, rows_.begin + row);
        },
        count_, base_.head_dim, s_.query);
    if (count_ < kPassRows) {
      std::memset(s_.scores, 0, sizeof s_.scores);
    }
    std::memset(s_.weights, 0, sizeof s_.weights);
    std::memset(s_.sums, 0, static_cast<size_t>(kPassRows * width_) * sizeof(float));
    std::memset(s_.totals, 0, sizeof s_.totals);
    for (int64_t row = 0; row < kPassRows; ++row) {
      s_.references[row] = kMinusInfinity;
      s_.seen[row] = row < count_ ? keys_of(head_, rows_.begin + row) : Span{};
    }
  }

  void run() {
    const int64_t first = keys_.begin / kPassItems;
    const int64_t last = keys_.is_empty() ? first : (keys_.end + kPassItems - 1) / kPassItems;
    // A tile is not forwarded from stores under way: between two steps that depend on each other lies one that does not.
    for (int64_t block = first; block < last; ++block) {
      if (block == first) {
        score(block);
      }
      weigh(block);
      if (block + 1 < last) {
        score(block + 1);
      }
      add(block);
    }
    for (int64_t row = 0; row < count_; ++row) {
      finish_row<T>(head_, rows_.begin + row, s_.references[row] / Exponential<Form>::kUnit,
                    sum_lanes(load(s_.totals + row * kLanes)), s_.sums + row * width_);
    }
  }

 private:
  Span columns(int64_t block) const { return columns_of(keys_, block * kPassItems); }
  bool hazard(int64_t block) const {
    return round_.values_down.hazards[head_index_ * round_.key_blocks() + block] != 0;
  }
  const Word* operand(const attention::Operand& operand, int64_t block) const {
    return block_of<Word>(round_, operand, round_.key_blocks(), head_index_, block);
  }

  void score(int64_t block) {
    const Span at = columns(block);
    multiply<Form, false>({s_.query, words_, operand(round_.keys_across, block) + at.begin * words_,
                           words_ * kLanes, words_, s_.scores + at.begin, kPassItems},
                          count_, (at.end - at.begin) / kLanes);
  }

  void weigh(int64_t block) {
    const Span at = columns(block);
    const float factor = (is_plain(base_) ? base_.scale : 1.0F) * Exponential<Form>::kUnit;
    mask_rows<Form, T>(head_, s_, rows_, block * kPassItems, at, s_.scores);
    const auto run = [&](auto columns) {
      find_references(s_, count_, columns, factor);
      weigh_rows(s_, count_, columns, factor, width_, hazard(block));
    };
    at.end - at.begin == kPassItems ? run(WholeBlock{}) : run(at);
  }

  void add(int64_t block) {
    const int64_t first = block * kPassItems;
    const auto item = [&](int64_t j) {
      return head_.template key<const T>(base_.value, base_.value_stride, first + j);
    };
    const Items<Form, T, decltype(item)> values{operand(round_.values_down, block), hazard(block),
                                                base_.keys - first, item};
    add_items(s_.weights, count_, columns(block), values, base_.head_dim, s_.sums);
  }

  const Round& round_;
  const Head head_;
  const Problem& base_;
  const int64_t head_index_;
  const Span rows_, keys_;
  const int64_t count_ = rows_.end - rows_.begin;
  const int64_t words_ = words_of<Form>(base_.head_dim), panels_ = panels_of<Form>(base_.head_dim);
  const int64_t width_ = panels_ * kLanes;
  ForwardScratch<Form> s_;
};

}  // namespace

void attention_pack_keys(const Round& round, int64_t begin, int64_t end) {
  with_form(round, [&]<typename Form, typename T>() {
    const Problem& base = round.problem->base;
    const int64_t blocks = round.key_blocks();
    for (int64_t task = begin; task < end; ++task) {
      const Head head(round, task / blocks);
      const int64_t first = task % blocks * kPassItems, left = base.keys - first;
      const auto at = [&](const attention::Operand& operand) {
        return operand.panels == nullptr ? nullptr : operand.panels + task * round.block_bytes();
      };
      const auto hazard = [&](const attention::Operand& operand) {
        return operand.hazards == nullptr ? nullptr : operand.hazards + task;
      };
      pack_block<Form, T>(
          [&](int64_t i) { return head.key<const T>(base.key, base.key_stride, first + i); }, left,
          base.head_dim, at(round.keys_across), at(round.keys_down), hazard(round.keys_down));
      pack_block<Form, T>(
          [&](int64_t i) { return head.key<const T>(base.value, base.value_stride, first + i); },
          left, base.head_dim, at(round.values_across), at(round.values_down),
          hazard(round.values_down));
    }
  });
}

void attention_forward_rows(const Round& round, int64_t begin, int64_t end) {
  with_form(round, [&]<typename Form, typename T>() {
    const int64_t passes = round.row_passes();
    for (int64_t task = begin; task < end; ++task) {
      ForwardPass<Form, T>(round, task / passes, attention::balanced(task % passes, passes)).run();
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA

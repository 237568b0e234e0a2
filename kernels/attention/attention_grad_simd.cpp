// The gradients of attention for the vectors of one instruction set. Compiled once per set: see common/simd.h.
//
// Scores and weights are made again from the log-sum-exp (Dao et al. 2022, algorithm 4): once per block of rows for the
// gradient of queries, once per block of keys for those of keys and values. Both are the same pass with the sides
// exchanged; each result has one writer and one order of sums. Weights and their gradients are rounded to bfloat16 where
// products are made of bfloat16.

#include "kernels/attention/attention_passes_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

template <typename Form>
struct GradScratch {
  using Word = typename Form::Word;
  static constexpr int64_t kWeightWords = kPassItems / Form::kElements;  // of a row
  // Queries and incoming gradients of a block of rows, or keys and values of a block of keys.
  alignas(64) Word left[kPassRows * kMaxHeadDim / Form::kElements];
  alignas(64) Word left_grad[kPassRows * kMaxHeadDim / Form::kElements];
  alignas(64) float scores[kPassRows * kPassItems];
  alignas(64) float slopes[kPassRows * kPassItems];  // gradients of weights, then of scores
  alignas(64) Word weights[kPassRows * kWeightWords];
  alignas(64) Word grads[kPassRows * kWeightWords];
  alignas(64) float bends[kPassItems];
  alignas(
      64) float offsets[kPassItems];  // -lse in units of the exponential; -infinity: sees nothing
  alignas(64) float deltas[kPassItems];
  alignas(64) float sums[kPassRows * kMaxHeadDim];
  alignas(64) float value_sums[kPassRows * kMaxHeadDim];
};

template <typename Form>
inline float offset_of(float lse) {
  return lse == kMinusInfinity ? kMinusInfinity : -lse * Exponential<Form>::kUnit;
}

// Scores and gradients of weights of one row of a block become weights and gradients of scores. What is hidden becomes
// kMaskedWeight in both. Offsets and deltas: one for all columns, or one each.
template <typename Form, bool kOfColumns>
inline void make_weights(const float* scores, const float* slopes, const float* bends, Span columns,
                         float factor, const float* offsets, const float* deltas,
                         typename Form::Word* weights, typename Form::Word* grads) {
  const auto at = [](const float* from, int64_t j) {
    return kOfColumns ? load(from + j) : splat(*from);
  };
  const auto make = [&](int64_t j, Float& weight, Float& grad) {
    const Float score = load(scores + j), offset = at(offsets, j);
    const Int hidden = (score == splat(kMinusInfinity)) | (offset == splat(kMinusInfinity));
    weight = Exponential<Form>::of(multiply_add(score, splat(factor), offset));
    grad = weight * (load(slopes + j) - at(deltas, j));
    if (bends != nullptr) {
      grad = grad * load(bends + j);
    }
    weight = select(hidden, splat(kMaskedWeight), weight);
    // A gradient that is zero by itself must not look like one that is hidden.
    grad = select(hidden, splat(kMaskedWeight), grad + Float{});
  };
  for (int64_t j = columns.begin; j < columns.end; j += Form::kElements * kLanes) {
    Float weight, grad;
    make(j, weight, grad);
    if constexpr (Form::kElements == 1) {
      store(weights + j, weight);
      store(grads + j, grad);
    } else {
#if defined(__AVX512F__)
      Float next_weight, next_grad;
      make(j + kLanes, next_weight, next_grad);
      _mm512_storeu_si512(weights + (j >> 1), to_bf16(weight, next_weight));
      _mm512_storeu_si512(grads + (j >> 1), to_bf16(grad, next_grad));
#endif
    }
  }
}

// A block of rows (kOfKeys false) or of keys on its way over the other side.
template <typename Form, typename T, bool kOfKeys>
class GradPass {
  using Word = typename Form::Word;

 public:
  GradPass(const Round& round, int64_t head_index, int64_t pass)
      : round_(round),
        head_(round, head_index),
        problem_(head_.problem),
        base_(problem_.base),
        head_index_(head_index),
        own_{pass * kPassRows, clamp((pass + 1) * kPassRows, kOfKeys ? base_.keys : base_.rows())} {
    stage_rows<Form, T>([&](int64_t i) { return own(i, false); }, count_, base_.head_dim, s_.left);
    stage_rows<Form, T>([&](int64_t i) { return own(i, true); }, count_, base_.head_dim,
                        s_.left_grad);
    std::memset(s_.weights, 0, sizeof s_.weights);
    std::memset(s_.grads, 0, sizeof s_.grads);
    std::memset(s_.sums, 0, static_cast<size_t>(kPassRows * width_) * sizeof(float));
    std::memset(s_.value_sums, 0, static_cast<size_t>(kPassRows * width_) * sizeof(float));
  }

  void run() {
    if constexpr (!kOfKeys) {
      fill_statistics();
    }
    const Span seen{sees(0).begin, sees(count_ - 1).end};
    const int64_t last = seen.is_empty() ? 0 : (seen.end + kPassItems - 1) / kPassItems;
    for (int64_t block = seen.begin / kPassItems; block < last; ++block) {
      step(block, columns_of(seen, block * kPassItems));
    }
    for (int64_t i = 0; i < count_; ++i) {
      finish(i);
    }
  }

 private:
  // Where an item lies: of the own side or, across, of the other; with `grad` what meets the gradient of weights.
  const T* row(int64_t at, bool grad) const {
    return grad ? head_.template row<const T>(problem_.grad_out, problem_.grad_out_stride, at)
                : head_.template row<const T>(base_.query, base_.query_stride, at);
  }
  const T* key(int64_t at, bool grad) const {
    return grad ? head_.template key<const T>(base_.value, base_.value_stride, at)
                : head_.template key<const T>(base_.key, base_.key_stride, at);
  }
  const T* own(int64_t i, bool grad) const {
    return kOfKeys ? key(own_.begin + i, grad) : row(own_.begin + i, grad);
  }
  // What item i of the own side sees of the other.
  Span sees(int64_t i) const {
    return kOfKeys ? rows_of(head_, own_.begin + i) : keys_of(head_, own_.begin + i);
  }
  int64_t blocks() const { return kOfKeys ? round_.row_blocks() : round_.key_blocks(); }
  const Word* operand(const attention::Operand& operand, int64_t block) const {
    return block_of<Word>(round_, operand, blocks(), head_index_, block);
  }

  // Offsets and deltas of the own rows; the deltas are kept for the pass over keys.
  void fill_statistics() {
    alignas(64) float out[kMaxHeadDim], grad[kMaxHeadDim];
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t at = own_.begin + i;
      widen_rows(head_.template row<const T>(base_.out, base_.out_stride, at), 0, 1, base_.head_dim,
                 out);
      widen_rows(row(at, true), 0, 1, base_.head_dim, grad);
      Float sum = {};
      for (int64_t j = 0; j < padded(base_.head_dim); j += kLanes) {
        sum = multiply_add(load(out + j), load(grad + j), sum);
      }
      s_.deltas[i] = *head_.statistic(problem_.delta, at) = sum_lanes(sum);
      s_.offsets[i] = offset_of<Form>(*head_.statistic(problem_.lse, at));
    }
  }

  // Those of the rows that a block of the other side holds.
  void load_statistics(int64_t first) {
    for (int64_t j = 0; j < kPassItems; ++j) {
      const bool is_row = first + j < base_.rows();
      s_.deltas[j] = is_row ? *head_.statistic(problem_.delta, first + j) : 0.0F;
      s_.offsets[j] =
          is_row ? offset_of<Form>(*head_.statistic(problem_.lse, first + j)) : kMinusInfinity;
    }
  }

  void step(int64_t block, Span columns) {
    const int64_t first = block * kPassItems, panels = (columns.end - columns.begin) / kLanes;
    const auto across = [&](const Word* left, const attention::Operand& other, float* sums) {
      multiply<Form, false>({left, words_, operand(other, block) + columns.begin * words_,
                             words_ * kLanes, words_, sums + columns.begin, kPassItems},
                            count_, panels);
    };
    across(s_.left, kOfKeys ? round_.queries_across : round_.keys_across, s_.scores);
    across(s_.left_grad, kOfKeys ? round_.grads_across : round_.values_across, s_.slopes);
    if constexpr (kOfKeys) {
      load_statistics(first);
    }
    for (int64_t i = 0; i < count_; ++i) {
      weigh(i, first, columns);
    }
    add(s_.grads, kOfKeys ? round_.queries_down : round_.keys_down, block, columns, false, s_.sums);
    if constexpr (kOfKeys) {
      add(s_.weights, round_.grads_down, block, columns, true, s_.value_sums);
    }
  }

  void weigh(int64_t i, int64_t first, Span columns) {
    float* scores = s_.scores + i * kPassItems;
    const bool plain = is_plain(base_);
    if (!plain) {
      bend(base_, columns, scores, s_.bends);
      add_mask(i, first, columns, scores);
    }
    hide(sees(i), first, columns, scores);
    make_weights<Form, kOfKeys>(scores, s_.slopes + i * kPassItems, plain ? nullptr : s_.bends,
                                columns, (plain ? base_.scale : 1.0F) * Exponential<Form>::kUnit,
                                s_.offsets + (kOfKeys ? 0 : i), s_.deltas + (kOfKeys ? 0 : i),
                                s_.weights + i * s_.kWeightWords, s_.grads + i * s_.kWeightWords);
  }

  void add_mask(int64_t i, int64_t first, Span columns, float* scores) {
    if (base_.mask == nullptr) {
      return;
    }
    if constexpr (!kOfKeys) {
      add_row_mask<T>(head_, own_.begin + i, first, columns, scores);
    } else {
      // Down a column of the mask.
      const int64_t last = base_.rows() - first < columns.end ? base_.rows() - first : columns.end;
      for (int64_t j = columns.begin; j < last; ++j) {
        add_row_mask<T>(head_, first + j, own_.begin + i, {0, 1}, scores + j);
      }
    }
  }

  // sums += weights of this block . its items
  void add(const Word* weights, const attention::Operand& other, int64_t block, Span columns,
           bool grad, float* sums) {
    const int64_t first = block * kPassItems;
    const auto item = [&](int64_t j) {
      return kOfKeys ? row(first + j, grad) : key(first + j, grad);
    };
    const Items<Form, T, decltype(item)> items{operand(other, block),
                                               other.hazards[head_index_ * blocks() + block] != 0,
                                               (kOfKeys ? base_.rows() : base_.keys) - first, item};
    add_items(weights, count_, columns, items, base_.head_dim, sums);
  }

  void finish(int64_t i) {
    const float* sums = s_.sums + i * width_;
    if constexpr (kOfKeys) {
      store_scaled(
          head_.template key<T>(problem_.grad_key, problem_.grad_key_stride, own_.begin + i), sums,
          base_.scale, base_.head_dim);
      store_scaled(
          head_.template key<T>(problem_.grad_value, problem_.grad_value_stride, own_.begin + i),
          s_.value_sums + i * width_, 1.0F, base_.head_dim);
    } else {
      store_scaled(
          head_.template row<T>(problem_.grad_query, problem_.grad_query_stride, own_.begin + i),
          sums, base_.scale, base_.head_dim);
    }
  }

  const Round& round_;
  const Head head_;
  const TrainProblem& problem_;
  const Problem& base_;
  const int64_t head_index_;
  const Span own_;
  const int64_t count_ = own_.end - own_.begin;
  const int64_t words_ = words_of<Form>(base_.head_dim), panels_ = panels_of<Form>(base_.head_dim);
  const int64_t width_ = panels_ * kLanes;
  GradScratch<Form> s_;
};

template <bool kOfKeys>
void run_passes(const Round& round, int64_t begin, int64_t end) {
  with_form(round, [&]<typename Form, typename T>() {
    const int64_t passes = kOfKeys ? round.key_passes() : round.row_passes();
    for (int64_t task = begin; task < end; ++task) {
      GradPass<Form, T, kOfKeys>(round, task / passes, attention::balanced(task % passes, passes))
          .run();
    }
  });
}

}  // namespace

void attention_pack_rows(const Round& round, int64_t begin, int64_t end) {
  with_form(round, [&]<typename Form, typename T>() {
    const TrainProblem& problem = *round.problem;
    const Problem& base = problem.base;
    const int64_t blocks = round.row_blocks();
    for (int64_t task = begin; task < end; ++task) {
      const Head head(round, task / blocks);
      const int64_t first = task % blocks * kPassItems, left = base.rows() - first;
      const auto pack = [&](const void* from, const int64_t(&stride)[3],
                            const attention::Operand& across, const attention::Operand& down) {
        pack_block<Form, T>([&](int64_t i) { return head.row<const T>(from, stride, first + i); },
                            left, base.head_dim, across.panels + task * round.block_bytes(),
                            down.panels + task * round.block_bytes(), down.hazards + task);
      };
      pack(base.query, base.query_stride, round.queries_across, round.queries_down);
      pack(problem.grad_out, problem.grad_out_stride, round.grads_across, round.grads_down);
    }
  });
}

void attention_grad_queries(const Round& round, int64_t begin, int64_t end) {
  run_passes<false>(round, begin, end);
}

void attention_grad_keys(const Round& round, int64_t begin, int64_t end) {
  run_passes<true>(round, begin, end);
}

}  // namespace graft_kernels::GRAFT_ISA

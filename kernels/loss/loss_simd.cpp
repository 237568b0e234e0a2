// Rows of cross-entropy with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include <math.h>

#include "kernels/common/simd_math.h"
#include "kernels/loss/loss.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using loss::Mode;
using loss::Options;
using loss::Problem;

// Sums blocks of this many vectors and then the blocks: the error of a long row stays that of a
// short one.
constexpr int64_t kVectorsPerBlock = 128;

// Logits after the soft cap, and what the cap's derivative is there.
struct Cap {
  Float size, inverse;
  bool is_set;

  explicit Cap(float softcap)
      : size(splat(softcap)),
        inverse(splat(softcap > 0 ? 1.0F / softcap : 0.0F)),
        is_set(softcap > 0) {}
  Float apply(Float logit) const { return is_set ? size * tanh(logit * inverse) : logit; }
  Float slope(Float capped) const {
    const Float share = capped * inverse;
    return splat(1.0F) - share * share;
  }
};

// The lanes of a row's last vector that hold elements.
Int lanes_below(int64_t count) {
  Int mask;
  for (int lane = 0; lane < kLanes; ++lane) {
    mask[lane] = lane < count ? -1 : 0;
  }
  return mask;
}

// Calls visit(column, capped logits, mask of what belongs to the row) for each vector of a row.
template <typename T, typename Visit>
void for_each_vector(const T* row, int64_t columns, const Cap& cap, const Visit& visit) {
  const Int all = lanes_below(kLanes);
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    visit(column, cap.apply(load<T>(row + column)), all);
  }
  if (column < columns) {
    visit(column, cap.apply(load_partial<T>(row + column, columns - column)),
          lanes_below(columns - column));
  }
}

// A sum in blocks.
class BlockSum {
 public:
  void add(Float value) {
    block_ += value;
    if (++count_ == kVectorsPerBlock) {
      total_ += block_;
      block_ = Float{};
      count_ = 0;
    }
  }
  float total() const { return sum_lanes(total_ + block_); }

 private:
  Float total_ = {}, block_ = {};
  int64_t count_ = 0;
};

struct RowSums {
  float lse;
  float mean;  // of the capped logits; only with smoothing
};

template <typename T>
RowSums sums_of(const T* row, int64_t columns, const Cap& cap, bool with_mean) {
  const Float lowest = splat(-INFINITY);
  Float largest = lowest;
  for_each_vector(row, columns, cap, [&](int64_t, Float z, Int mask) {
    const Float inside = select(mask, z, lowest);
    largest = select(inside > largest, inside, largest);
  });
  float top = largest[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    top = largest[lane] > top ? largest[lane] : top;
  }
  // Without a finite logit nothing may be subtracted: infinity minus infinity is no number.
  const float shift = top == -INFINITY ? 0.0F : top;
  BlockSum exponentials, plain_sum;
  for_each_vector(row, columns, cap, [&](int64_t, Float z, Int mask) {
    // Far below the smallest exponent, zero is zero and no denormal.
    const Float share = select(z == lowest, Float{}, exp(z - splat(shift)));
    exponentials.add(select(mask, share, Float{}));
    if (with_mean) {
      plain_sum.add(select(mask, z, Float{}));
    }
  });
  // logl, since logf asks for a newer glibc than packages may.
  const float logarithm = static_cast<float>(logl(exponentials.total()));
  return {shift + logarithm, plain_sum.total() / static_cast<float>(columns)};
}

template <typename T>
float capped_logit(const T* row, int64_t column, const Cap& cap) {
  return cap.apply(load_partial<T>(row + column, 1))[0];
}

template <typename T>
void write_gradient(const T* row, T* grad, int64_t columns, int64_t label, float lse, float factor,
                    const Options& options, const Cap& cap) {
  const Float spread = splat(options.smoothing / static_cast<float>(columns));
  const Float lowest = splat(-INFINITY);
  const auto gradient = [&](Float z) {
    const Float share = select(z == lowest, Float{}, exp(z - splat(lse)));
    const Float slope = cap.is_set ? cap.slope(z) : splat(1.0F);
    return splat(factor) * (share - spread) * slope;
  };
  // The label's own column may be overwritten in place before it is asked for.
  const float label_z = capped_logit(row, label, cap);
  for_each_vector(row, columns, cap, [&](int64_t column, Float z, Int) {
    const int64_t count = columns - column;
    count >= kLanes ? store(grad + column, gradient(z))
                    : store_partial(grad + column, gradient(z), count);
  });
  const Float at_label = splat(label_z);
  const Float share = exp(at_label - splat(lse));
  const Float slope = cap.is_set ? cap.slope(at_label) : splat(1.0F);
  const Float target = splat(1.0F - options.smoothing);
  store_partial(grad + label, splat(factor) * (share - spread - target) * slope, 1);
}

template <typename T>
void write_constant(T* grad, int64_t columns, float value) {
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    store(grad + column, splat(value));
  }
  if (column < columns) {
    store_partial(grad + column, splat(value), columns - column);
  }
}

template <typename T>
void one_row(const Problem& problem, int64_t row, const Cap& cap) {
  const Options& options = problem.options;
  const T* logits = static_cast<const T*>(problem.logits) + problem.logits_rows.offset(row);
  T* grad = problem.mode == Mode::kForward
                ? nullptr
                : static_cast<T*>(problem.grad) + problem.grad_rows.offset(row);
  const int64_t label = problem.labels[problem.label_rows.offset(row)];
  if (label == options.ignore_index) {
    if (problem.mode != Mode::kBackward) {
      problem.loss[row] = 0;
      problem.lse[row] = 0;
    }
    if (grad != nullptr) {
      write_constant(grad, problem.columns, 0);
    }
    return;
  }
  if (problem.mode != Mode::kBackward) {
    const bool smooth = options.smoothing > 0;
    const RowSums sums = sums_of(logits, problem.columns, cap, smooth);
    const float z = capped_logit(logits, label, cap);
    problem.lse[row] = sums.lse;
    problem.loss[row] =
        smooth ? (sums.lse - z) + options.smoothing * (z - sums.mean) : sums.lse - z;
  }
  if (grad != nullptr) {
    const float factor = problem.grad_loss[problem.grad_loss_rows.offset(row)];
    write_gradient(logits, grad, problem.columns, label, problem.lse[row], factor, options, cap);
  }
}

template <typename T>
void rows_of(const Problem& problem, int64_t begin, int64_t end) {
  const Cap cap(problem.options.softcap);
  for (int64_t row = begin; row < end; ++row) {
    one_row<T>(problem, row, cap);
  }
}

}  // namespace

void loss_rows(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) { rows_of<T>(problem, begin, end); });
}

}  // namespace graft_kernels::GRAFT_ISA

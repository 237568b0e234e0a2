// Rows of RMSNorm's backward with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include <math.h>

#include "kernels/rms-norm/rms_norm.h"
#include "kernels/rms-norm/rows_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using rms_norm::BackwardProblem;
using rms_norm::Variant;

// One row: pointers to its elements.
template <typename X, typename Out>
struct BackwardRow {
  const Out* grad_out;
  const X* grad_sum;  // or null
  const X* x;
  X* grad_x;
};

template <bool kZeroCentered, typename W>
Float factor_of(const W* weight, int64_t count) {
  const Float value = load_some<W>(weight, count);
  return kZeroCentered ? splat(1.0F) + value : value;
}

template <bool kZeroCentered, typename X, typename W, typename Out>
void backward_row(const BackwardRow<X, Out>& row, const W* weight, float* grad_weight,
                  int64_t columns, float eps) {
  // Four streams keep the adders busy; blocks keep the error of a long row that of a short one.
  Float squares[4] = {}, dots[4] = {}, square_total = {}, dot_total = {};
  int64_t count_in_block = 0;
  const auto flush = [&] {
    square_total += (squares[0] + squares[1]) + (squares[2] + squares[3]);
    dot_total += (dots[0] + dots[1]) + (dots[2] + dots[3]);
    for (int stream = 0; stream < 4; ++stream) {
      squares[stream] = dots[stream] = Float{};
    }
    count_in_block = 0;
  };
  for_each_vector(columns, [&](int64_t column, int64_t count) {
    const Float x = load_some<X>(row.x + column, count);
    const Float gradient = load_some<Out>(row.grad_out + column, count) *
                           factor_of<kZeroCentered>(weight + column, count);
    squares[count_in_block % 4] += x * x;
    dots[count_in_block % 4] += gradient * x;
    if (++count_in_block == kVectorsPerBlock) {
      flush();
    }
  });
  flush();
  const float width = static_cast<float>(columns);
  const float square = sum_lanes(square_total), dot = sum_lanes(dot_total);
  const float inverse = 1.0F / sqrtf(square / width + eps);
  const Float scale = splat(inverse), pull = splat(inverse * inverse * (dot / width));
  for_each_vector(columns, [&](int64_t column, int64_t count) {
    const Float x = load_some<X>(row.x + column, count);
    const Float incoming = load_some<Out>(row.grad_out + column, count);
    Float gradient =
        scale * (incoming * factor_of<kZeroCentered>(weight + column, count) - x * pull);
    if (row.grad_sum != nullptr) {
      gradient += load_some<X>(row.grad_sum + column, count);
    }
    store_some(row.grad_x + column, gradient, count);
    store_some(grad_weight + column,
               load_some<float>(grad_weight + column, count) + incoming * (x * scale), count);
  });
}

// Rows are added up in blocks of this many, and the blocks then: the error of many rows stays that
// of few.
constexpr int64_t kBlockRows = 32;

template <bool kZeroCentered, typename X, typename W, typename Out>
void backward_part(const BackwardProblem& problem, int64_t part) {
  const int64_t begin = problem.rows * part / problem.parts;
  const int64_t end = problem.rows * (part + 1) / problem.parts;
  float* grad_weight = problem.partial + part * problem.columns;
  float* block = grad_weight + problem.parts * problem.columns;
  for (int64_t column = 0; column < problem.columns; ++column) {
    grad_weight[column] = block[column] = 0.0F;
  }
  for (int64_t i = begin; i < end; ++i) {
    BackwardRow<X, Out> row;
    row.grad_out = static_cast<const Out*>(problem.grad_out) + problem.grad_out_rows.offset(i);
    row.grad_sum = problem.grad_sum == nullptr
                       ? nullptr
                       : static_cast<const X*>(problem.grad_sum) + problem.grad_sum_rows.offset(i);
    row.x = static_cast<const X*>(problem.x) + problem.x_rows.offset(i);
    row.grad_x = static_cast<X*>(problem.grad_x) + problem.grad_x_rows.offset(i);
    backward_row<kZeroCentered, X, W, Out>(row, static_cast<const W*>(problem.weight), block,
                                           problem.columns, problem.eps);
    if ((i - begin) % kBlockRows == kBlockRows - 1 || i + 1 == end) {
      for (int64_t column = 0; column < problem.columns; ++column) {
        grad_weight[column] += block[column];
        block[column] = 0.0F;
      }
    }
  }
}

template <typename X, typename W>
void backward_part_of(const BackwardProblem& problem, int64_t part) {
  if (problem.variant == Variant::kCastBeforeWeight) {
    return backward_part<false, X, W, W>(problem, part);  // its output has the weight's dtype
  }
  problem.variant == Variant::kZeroCentered ? backward_part<true, X, W, X>(problem, part)
                                            : backward_part<false, X, W, X>(problem, part);
}

template <typename W>
void sum_parts(const BackwardProblem& problem, int64_t begin, int64_t end) {
  W* grad_weight = static_cast<W*>(problem.grad_weight) + begin;
  const float* partial = problem.partial + begin;
  for_each_vector(end - begin, [&](int64_t column, int64_t count) {
    Float total = {};
    for (int64_t part = 0; part < problem.parts; ++part) {
      total += load_some<float>(partial + part * problem.columns + column, count);
    }
    store_some(grad_weight + column, total, count);
  });
}

}  // namespace

void rms_norm_backward_part(const BackwardProblem& problem, int64_t part) {
  const bool float_weight = problem.weight_dtype == Dtype::kFloat32;
  with_type(problem.x_dtype, [&]<typename T>(T*) {
    float_weight ? backward_part_of<T, float>(problem, part)
                 : backward_part_of<T, T>(problem, part);
  });
}

void rms_norm_backward_weight(const BackwardProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.weight_dtype, [&]<typename T>(T*) { sum_parts<T>(problem, begin, end); });
}

}  // namespace graft_kernels::GRAFT_ISA

// Rows of RMSNorm with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include "kernels/rms-norm/norm_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using rms_norm::Problem;
using rms_norm::Variant;

template <Variant kVariant, typename X, typename W, typename Out>
void normalize_row(const X* x, const W* weight, Out* out, int64_t columns, float eps) {
  const Float inverse = splat(inverse_rms(x, columns, eps));
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    store(out + column,
          scale_norm<kVariant, X>(load<X>(x + column), inverse, load<W>(weight + column)));
  }
  if (column < columns) {
    const int64_t count = columns - column;
    store_partial(out + column,
                  scale_norm<kVariant, X>(load_partial<X>(x + column, count), inverse,
                                          load_partial<W>(weight + column, count)),
                  count);
  }
}

// The sum is rounded to X before anything else sees it.
template <typename X>
void add_row(const X* x, const X* residual, X* sum, int64_t columns) {
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    store(sum + column, load<X>(residual + column) + load<X>(x + column));
  }
  if (column < columns) {
    const int64_t count = columns - column;
    store_partial(sum + column,
                  load_partial<X>(residual + column, count) + load_partial<X>(x + column, count),
                  count);
  }
}

template <Variant kVariant, typename X, typename W, typename Out>
void rows(const Problem& problem, int64_t begin, int64_t end) {
  const X* x = static_cast<const X*>(problem.x);
  const X* residual = static_cast<const X*>(problem.residual);
  const W* weight = static_cast<const W*>(problem.weight);
  Out* out = static_cast<Out*>(problem.out);
  X* sum = static_cast<X*>(problem.sum);
  for (int64_t row = begin; row < end; ++row) {
    const X* source = x + problem.x_rows.offset(row);
    if (residual != nullptr) {
      X* target = sum + problem.sum_rows.offset(row);
      add_row(source, residual + problem.residual_rows.offset(row), target, problem.columns);
      source = target;
    }
    normalize_row<kVariant, X, W, Out>(source, weight, out + problem.out_rows.offset(row),
                                       problem.columns, problem.eps);
  }
}

template <typename X, typename W>
void rows_of(const Problem& problem, int64_t begin, int64_t end) {
  switch (problem.variant) {
    case Variant::kCastBeforeWeight:
      return rows<Variant::kCastBeforeWeight, X, W, W>(problem, begin, end);
    case Variant::kZeroCentered:
      return rows<Variant::kZeroCentered, X, W, X>(problem, begin, end);
    case Variant::kCastAfterWeight:
    case Variant::kFloatWeight:
      // A weight of x's dtype is promoted to float32 by the product either way.
      return rows<Variant::kFloatWeight, X, W, X>(problem, begin, end);
  }
}

}  // namespace

void rms_norm_rows(const Problem& problem, int64_t begin, int64_t end) {
  const bool float_weight = problem.weight_dtype == Dtype::kFloat32;
  with_type(problem.x_dtype, [&]<typename T>(T*) {
    float_weight ? rows_of<T, float>(problem, begin, end) : rows_of<T, T>(problem, begin, end);
  });
}

}  // namespace graft_kernels::GRAFT_ISA

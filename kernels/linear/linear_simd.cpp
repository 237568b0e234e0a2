// Dot products of weight rows with a few rows of x. Compiled once per instruction set: see
// common/simd.h.

#include "kernels/common/dots_simd.h"
#include "kernels/linear/linear.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using linear::Problem;

template <typename W>
float load_one(const W* from) {
  return load_partial<W>(from, 1)[0];
}

template <typename W>
void columns(const Problem& problem, int64_t begin, int64_t end) {
  const W* bias = static_cast<const W*>(problem.bias);
  dots_of_columns<W>(problem.x, problem.rows, problem.depth, static_cast<const W*>(problem.weight),
                     begin, end, [&](int64_t row, int64_t column, float sum) {
                       const float value = bias == nullptr ? sum : sum + load_one(bias + column);
                       store_partial(
                           static_cast<W*>(problem.out) + row * problem.out_stride + column,
                           splat(value), 1);
                     });
}

}  // namespace

void linear_columns(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename W>(W*) { columns<W>(problem, begin, end); });
}

void linear_widen(Dtype dtype, const void* from, float* to, int64_t count) {
  with_type(dtype, [&]<typename X>(X*) { widen_span(static_cast<const X*>(from), to, count); });
}

}  // namespace graft_kernels::GRAFT_ISA

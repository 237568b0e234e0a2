// What the host files of this package share: the numeric variants, the checked problem, the CPU
// rows.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/row_layout.h"

namespace graft_kernels::rms_norm {

// The four numeric variants; the numbers are part of the op's interface (layers.json).
enum class Variant : int {
  kCastBeforeWeight = 0,  // weight * cast(norm(x))
  kCastAfterWeight = 1,   // cast(weight * norm(x))
  kFloatWeight = 2,       // cast(float(weight) * norm(x))
  kZeroCentered = 3,      // cast((1 + float(weight)) * norm(x))
};
inline constexpr int kNumVariants = 4;

// A checked call. Pointers are untyped; `x` gives the dtype of x, residual and sum, `weight` its
// own. The output has weight's dtype in variant kCastBeforeWeight, else x's.
struct Problem {
  Dtype x_dtype = Dtype::kFloat32;
  Dtype weight_dtype = Dtype::kFloat32;
  Variant variant = Variant::kCastBeforeWeight;
  float eps = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  const void* x = nullptr;         // [rows, columns]
  const void* residual = nullptr;  // [rows, columns], absent without an addition
  const void* weight = nullptr;    // [columns], contiguous
  void* out = nullptr;             // [rows, columns]
  void* sum = nullptr;             // [rows, columns], absent without an addition
  RowLayout x_rows, residual_rows, out_rows, sum_rows;
};

// Computes rows [begin, end) of a problem with one instruction set.
using RowsFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);

// A checked call of the backward. `parts` rows of `partial` hold sums of the weight's gradient over
// disjoint sets of rows; which rows and how many parts depends on the problem and the device alone,
// so that the gradient has the same bits every time.
struct BackwardProblem {
  Dtype x_dtype = Dtype::kFloat32;
  Dtype weight_dtype = Dtype::kFloat32;
  Variant variant = Variant::kCastBeforeWeight;
  float eps = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  const void* grad_out = nullptr;  // [rows, columns] in the output's dtype
  const void* grad_sum = nullptr;  // [rows, columns] in x's dtype, absent without an addition
  const void* x = nullptr;         // [rows, columns], what was normalized
  const void* weight = nullptr;    // [columns], contiguous
  void* grad_x = nullptr;          // [rows, columns] in x's dtype
  void* grad_weight = nullptr;     // [columns] in weight's dtype, contiguous
  float* partial = nullptr;        // [parts, columns]
  int64_t parts = 0;
  RowLayout grad_out_rows, grad_sum_rows, x_rows, grad_x_rows;
};

// Part `part` of the rows: their grad_x, and their share of grad_weight into `partial`.
using BackwardPartFunction = void (*)(const BackwardProblem& problem, int64_t part);
// Columns [begin, end) of grad_weight: the sum over `partial`.
using BackwardWeightFunction = void (*)(const BackwardProblem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::rms_norm

// One entry per instruction set (rms_norm_simd.cpp, rms_norm_backward_simd.cpp).
namespace graft_kernels::plain {
void rms_norm_rows(const rms_norm::Problem& problem, int64_t begin, int64_t end);
void rms_norm_backward_part(const rms_norm::BackwardProblem& problem, int64_t part);
void rms_norm_backward_weight(const rms_norm::BackwardProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void rms_norm_rows(const rms_norm::Problem& problem, int64_t begin, int64_t end);
void rms_norm_backward_part(const rms_norm::BackwardProblem& problem, int64_t part);
void rms_norm_backward_weight(const rms_norm::BackwardProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void rms_norm_rows(const rms_norm::Problem& problem, int64_t begin, int64_t end);
void rms_norm_backward_part(const rms_norm::BackwardProblem& problem, int64_t part);
void rms_norm_backward_weight(const rms_norm::BackwardProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx512

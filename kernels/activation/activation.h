// What the host files of this package share: the functions, the checked problem, the CPU spans.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/row_layout.h"

namespace graft_kernels::activation {

enum class Function : int { kSilu, kGelu, kGeluTanh, kGeluNew, kGeluFast, kGeluQuick };

// A checked call: out = function(gate), or function(gate) rounded to the dtype and then times up.
struct Problem {
  Dtype dtype = Dtype::kFloat32;
  Function function = Function::kSilu;
  int64_t rows = 0;
  int64_t columns = 0;
  const void* gate = nullptr;  // [rows, columns]
  const void* up = nullptr;    // [rows, columns], absent without a product
  void* out = nullptr;         // [rows, columns]
  RowLayout gate_rows, up_rows, out_rows;
};

// Computes elements [begin, end), counted row by row, with one instruction set.
using SpanFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);

// A checked call of the backward: grad_gate = grad_out * function'(gate), times up where there is
// one; then also grad_up = grad_out * function(gate).
struct BackwardProblem {
  Dtype dtype = Dtype::kFloat32;
  Function function = Function::kSilu;
  int64_t rows = 0;
  int64_t columns = 0;
  const void* grad_out = nullptr;  // [rows, columns]
  const void* gate = nullptr;      // [rows, columns]
  const void* up = nullptr;        // [rows, columns], absent without a product
  void* grad_gate = nullptr;       // [rows, columns]
  void* grad_up = nullptr;         // [rows, columns], absent without a product
  RowLayout grad_out_rows, gate_rows, up_rows, grad_gate_rows, grad_up_rows;
};

using BackwardSpanFunction = void (*)(const BackwardProblem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::activation

// One entry per instruction set (activation_simd.cpp, activation_backward_simd.cpp).
namespace graft_kernels::plain {
void activation_span(const activation::Problem& problem, int64_t begin, int64_t end);
void activation_backward_span(const activation::BackwardProblem& problem, int64_t begin,
                              int64_t end);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void activation_span(const activation::Problem& problem, int64_t begin, int64_t end);
void activation_backward_span(const activation::BackwardProblem& problem, int64_t begin,
                              int64_t end);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void activation_span(const activation::Problem& problem, int64_t begin, int64_t end);
void activation_backward_span(const activation::BackwardProblem& problem, int64_t begin,
                              int64_t end);
}  // namespace graft_kernels::avx512

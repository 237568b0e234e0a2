// The norms beside plain RMSNorm: gated RMSNorm in both orders, and LayerNorm. The checked calls, shared by the
// host files, the CPU rows and the device code.
#pragma once

#include <cstdint>

#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

enum class Form : int {
  kNormThenGate,  // norm(x) * function(gate)
  kGateThenNorm,  // norm(x * function(gate)), the product in float32
  kLayer,         // (x - mean) * rsqrt(variance + eps) * weight + bias
  kPlain,         // norm(x): RMSNorm, where its backward shares the code of the others
};

constexpr bool is_gated(Form form) {
  return form == Form::kNormThenGate || form == Form::kGateThenNorm;
}

// The numbers are part of the ops' interface.
enum class GateFunction : int { kSilu = 0, kSigmoid = 1 };
inline constexpr int kNumGateFunctions = 2;

// A checked call. The output has x's dtype. Row r is scaled by row r % groups of the weight.
struct FormProblem {
  Form form = Form::kLayer;
  GateFunction function = GateFunction::kSilu;
  Variant variant = Variant::kFloatWeight;
  Dtype x_dtype = Dtype::kFloat32;
  Dtype weight_dtype = Dtype::kFloat32;  // of weight and bias: x's, or float32
  float eps = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t groups = 1;
  const void* x = nullptr;       // [rows, columns]
  const void* gate = nullptr;    // [rows, columns], of the gated forms
  const void* weight = nullptr;  // [groups, columns], contiguous; may be absent in kLayer
  const void* bias = nullptr;    // [columns], contiguous; kLayer alone, may be absent
  void* out = nullptr;           // [rows, columns]
  RowLayout x_rows, gate_rows, out_rows;
};

// A checked call of the backward; what `call` describes was the forward, but for `out`. `parts` rows of `partial`
// hold sums of the weight's gradient over disjoint sets of rows, those of `partial_bias` of the bias's; which rows
// and how many parts depends on the problem and the device alone.
struct FormBackwardProblem {
  FormProblem call;
  const void* grad_out = nullptr;  // [rows, columns]
  void* grad_x = nullptr;          // [rows, columns]
  const void* grad_sum =
      nullptr;                // [rows, columns], of add_rms_norm's sum; kPlain alone, may be absent
  void* grad_gate = nullptr;  // [rows, columns], of the gated forms
  void* grad_weight = nullptr;    // [groups, columns] in weight's dtype, contiguous
  void* grad_bias = nullptr;      // [columns] in weight's dtype, contiguous; kLayer alone
  float* partial = nullptr;       // [parts, groups, columns]
  float* partial_bias = nullptr;  // [parts, columns], kLayer alone
  int64_t parts = 0;
  RowLayout grad_out_rows, grad_sum_rows, grad_x_rows, grad_gate_rows;
};

using FormRowsFunction = void (*)(const FormProblem& problem, int64_t begin, int64_t end);
// Part `part` of the rows: their gradients, and their share of the weight's and the bias's.
using FormBackwardPartFunction = void (*)(const FormBackwardProblem& problem, int64_t part);

}  // namespace graft_kernels::rms_norm

// One entry per instruction set (forms_simd.cpp).
namespace graft_kernels::plain {
void form_rows(const rms_norm::FormProblem& problem, int64_t begin, int64_t end);
void form_backward_part(const rms_norm::FormBackwardProblem& problem, int64_t part);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void form_rows(const rms_norm::FormProblem& problem, int64_t begin, int64_t end);
void form_backward_part(const rms_norm::FormBackwardProblem& problem, int64_t part);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void form_rows(const rms_norm::FormProblem& problem, int64_t begin, int64_t end);
void form_backward_part(const rms_norm::FormBackwardProblem& problem, int64_t part);
}  // namespace graft_kernels::avx512

// Gated RMSNorm and LayerNorm on the CPU: the instruction set is chosen at run time, rows are spread over ATen's
// thread pool.

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/rms-norm/forms_ops.h"

namespace graft_kernels::rms_norm {

namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrainElements = 1 << 14;
// Rows that share one partial sum of the weight's gradient; never a matter of how many threads there are.
constexpr int64_t kMaxParts = 64;
constexpr int64_t kWeightGrainColumns = 256;

void run_cpu(const FormProblem& problem, const Tensor&) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const auto rows =
      choose_isa<FormRowsFunction>(plain::form_rows, avx2::form_rows, avx512::form_rows);
  const int64_t grain = kGrainElements / problem.columns + 1;
  spread(problem.rows, grain, [&](int64_t begin, int64_t end) { rows(problem, begin, end); });
}

// The gradient of the weight or the bias: the sum of its parts.
void sum_parts(const FormBackwardProblem& problem, float* partial, void* gradient) {
  BackwardProblem sum;
  sum.weight_dtype = problem.call.weight_dtype;
  sum.columns = problem.call.groups * problem.call.columns;
  sum.grad_weight = gradient;
  sum.partial = partial;
  sum.parts = problem.parts;
  const auto weight = choose_isa<BackwardWeightFunction>(plain::rms_norm_backward_weight,
                                                         avx2::rms_norm_backward_weight,
                                                         avx512::rms_norm_backward_weight);
  spread(sum.columns, kWeightGrainColumns,
         [&](int64_t begin, int64_t end) { weight(sum, begin, end); });
}

void run_backward_cpu(FormBackwardProblem& problem, const Tensor& x) {
  const FormProblem& call = problem.call;
  if (call.columns == 0) {
    return;
  }
  const int64_t grain = kGrainElements / call.columns + 1;
  const bool is_layer = call.form == Form::kLayer;
  problem.parts = std::min((call.rows + grain - 1) / grain, kMaxParts);
  // The second half is scratch: a block of rows for each part; LayerNorm has both for the bias too.
  const int64_t elements = 2 * problem.parts * call.groups * call.columns;
  const Tensor partial =
      torch::stable::new_empty(x, {(is_layer ? 2 : 1) * elements}, ScalarType::Float);
  problem.partial = static_cast<float*>(partial.mutable_data_ptr());
  problem.partial_bias = is_layer ? problem.partial + elements : nullptr;
  const auto part = choose_isa<FormBackwardPartFunction>(
      plain::form_backward_part, avx2::form_backward_part, avx512::form_backward_part);
  spread(problem.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      part(problem, i);
    }
  });
  sum_parts(problem, problem.partial, problem.grad_weight);
  if (is_layer) {
    sum_parts(problem, problem.partial_bias, problem.grad_bias);
  }
}

}  // namespace

using CpuFormOps = FormOps<&run_cpu, &run_backward_cpu>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::rms_norm::CpuFormOps::implement(ops); }

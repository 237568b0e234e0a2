// RMSNorm on the CPU: the instruction set is chosen at run time, rows are spread over ATen's thread
// pool.

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/rms-norm/rms_norm_backward_ops.h"

namespace graft_kernels::rms_norm {

namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrainElements = 1 << 15;

void run_cpu(const Problem& problem, const Tensor&) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const RowsFunction rows =
      choose_isa<RowsFunction>(plain::rms_norm_rows, avx2::rms_norm_rows, avx512::rms_norm_rows);
  const int64_t grain = kGrainElements / problem.columns + 1;
  spread(problem.rows, grain, [&](int64_t begin, int64_t end) { rows(problem, begin, end); });
}

// Rows that share one partial sum of the weight's gradient; never a matter of how many threads
// there are.
constexpr int64_t kMaxParts = 64;
constexpr int64_t kWeightGrainColumns = 256;

void run_backward_cpu(BackwardProblem& problem, const Tensor& x) {
  if (problem.columns == 0) {
    return;
  }
  const int64_t grain = kGrainElements / problem.columns + 1;
  problem.parts = std::min((problem.rows + grain - 1) / grain, kMaxParts);
  // The second half is scratch: a block of rows for each part.
  const Tensor partial =
      torch::stable::new_empty(x, {2 * problem.parts, problem.columns}, ScalarType::Float);
  problem.partial = static_cast<float*>(partial.mutable_data_ptr());
  const auto part = choose_isa<BackwardPartFunction>(
      plain::rms_norm_backward_part, avx2::rms_norm_backward_part, avx512::rms_norm_backward_part);
  const auto weight = choose_isa<BackwardWeightFunction>(plain::rms_norm_backward_weight,
                                                         avx2::rms_norm_backward_weight,
                                                         avx512::rms_norm_backward_weight);
  torch::stable::parallel_for(0, problem.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      part(problem, i);
    }
  });
  torch::stable::parallel_for(0, problem.columns, kWeightGrainColumns,
                              [&](int64_t begin, int64_t end) { weight(problem, begin, end); });
}

}  // namespace

using CpuOps = Ops<&run_cpu>;
using CpuBackwardOps = BackwardOps<&run_backward_cpu>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CPU, ops) {
  graft_kernels::rms_norm::CpuOps::implement(ops);
  graft_kernels::rms_norm::CpuBackwardOps::implement(ops);
}

// RMSNorm on the CPU: the instruction set is chosen at run time, rows are spread over ATen's thread
// pool.

#include "kernels/common/isa.h"
#include "kernels/rms-norm/rms_norm_ops.h"

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
  if (problem.rows <= grain) {
    return rows(problem, 0, problem.rows);
  }
  torch::stable::parallel_for(0, problem.rows, grain,
                              [&](int64_t begin, int64_t end) { rows(problem, begin, end); });
}

}  // namespace

using CpuOps = Ops<&run_cpu>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::rms_norm::CpuOps::implement(ops); }

// Rotary position embedding on the CPU, with a norm before it or without: tokens are spread over ATen's threads.

#include "kernels/rotary/rotary_cpu.h"

#include "kernels/common/parallel.h"
#include "kernels/rotary/norm_rotary_ops.h"

namespace graft_kernels::rotary {

namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrainElements = 1 << 14;

void run_cpu(const Problem& problem, const Tensor&) {
  const int64_t tokens = problem.batch * problem.length;
  const int64_t elements =
      (problem.heads[0].count + problem.heads[1].count) * problem.head_dim;  // of one token
  if (tokens == 0 || elements == 0) {
    return;
  }
  const auto run = tokens_function(problem);
  const int64_t grain = kGrainElements / elements + 1;
  spread(tokens, grain, [&](int64_t begin, int64_t end) { run(problem, begin, end); });
}

}  // namespace

using CpuOps = Ops<&run_cpu>;
using CpuNormOps = NormOps<&run_cpu>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(CPU, ops) {
  graft_kernels::rotary::CpuOps::implement(ops);
  graft_kernels::rotary::CpuNormOps::implement(ops);
}

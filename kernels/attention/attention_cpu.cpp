// Attention on the CPU: the instruction set is chosen at run time; tasks of a fixed number of keys
// are spread over ATen's threads and merged in order.

#include <algorithm>
#include <memory>

#include "kernels/attention/attention_ops.h"
#include "kernels/attention/attention_rounds_cpu.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"

namespace graft_kernels::attention {

void run_attention(const Problem& problem) {
  const int64_t blocks = problem.blocks();
  if (blocks == 0 || problem.head_dim == 0) {
    return;
  }
  if (problem.rows() > kMaxTaskRows) {
    TrainProblem many;
    many.base = problem;
    return run_forward(many);
  }
  const auto run_tasks = choose_isa<TasksFunction>(plain::attention_tasks, avx2::attention_tasks,
                                                   avx512::attention_tasks);
  const auto merge = choose_isa<TasksFunction>(plain::attention_merge, avx2::attention_merge,
                                               avx512::attention_merge);
  const int64_t tasks = blocks * problem.chunks();
  Partial partial;
  const int64_t rows = Partial::task_rows(problem), row_size = Partial::stride(problem);
  const std::unique_ptr<float[]> storage(new float[static_cast<size_t>(tasks * rows * row_size)]);
  partial.values = storage.get();
  const int64_t keys = std::min(problem.keys, kChunkKeys);
  const auto grain = [](int64_t multiplications) {
    return kGrainMultiplications / (multiplications + 1) + 1;
  };
  // Some chunks at once, since memory is read fastest in one go.
  constexpr int64_t kChunksAtOnce = 4;
  spread_in_turns(tasks, grain(2 * rows * keys * problem.head_dim), kChunksAtOnce,
                  [&](int64_t begin, int64_t end) { run_tasks(problem, partial, begin, end); });
  spread(blocks, grain(rows * problem.chunks() * row_size),
         [&](int64_t begin, int64_t end) { merge(problem, partial, begin, end); });
}

using CpuOps = Ops<&run_attention>;

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::attention::CpuOps::implement(ops); }

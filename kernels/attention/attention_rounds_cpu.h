// Rounds of heads and their packed operands, for the passes of attention on the CPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>

#include "kernels/attention/attention_blocks.h"
#include "kernels/common/parallel.h"

namespace graft_kernels::attention {

// Memory of packed operands, in rounds of as many heads as fit into kPackedBytes (one at least): what a task gets
// depends on shapes alone.
class Workspace {
 public:
  explicit Workspace(const TrainProblem& problem);
  // Asks for an operand over keys or over rows; before for_each_round.
  void need(Operand Round::*operand, bool over_keys);
  void for_each_round(const std::function<void(const Round&)>& run);

 private:
  struct Entry {
    Operand Round::*operand;
    bool over_keys;
  };
  int64_t blocks(const Entry& entry) const;

  Round round_;
  Entry operands_[8] = {};
  int count_ = 0;
};

// Calls run(begin, end) for parts of [0, tasks) of `step` tasks, which threads take as they come: one that wakes late, or
// whose processor is shared, takes fewer. For tasks whose results do not depend on who works on them.
template <typename Run>
void spread_in_turns(int64_t tasks, int64_t grain, int64_t step, const Run& run) {
  std::atomic<int64_t> next{0};
  spread(tasks, grain, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(step)) < tasks;) {
      run(begin, std::min(begin + step, tasks));
    }
  });
}

// cost: multiplications of one task
void run_round(RoundFunction work, const Round& round, int64_t tasks, int64_t cost);

// Attention over keys in one piece (attention_cpu.cpp): chunks of keys for few rows, else as run_forward.
void run_attention(const Problem& problem);

// The forward of a dense call; fills base.out and, where it is asked for, lse.
void run_forward(const TrainProblem& problem);
// The gradients of a dense call; fills delta too.
void run_backward(const TrainProblem& problem);

}  // namespace graft_kernels::attention

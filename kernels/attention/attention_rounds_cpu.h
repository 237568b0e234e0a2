// Rounds of heads and their packed operands, for the passes of attention on the CPU.
#pragma once

#include <functional>
#include <memory>

#include "kernels/attention/attention_blocks.h"

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

// cost: multiplications of one task
void run_round(RoundFunction work, const Round& round, int64_t tasks, int64_t cost);

// The forward of a dense call; fills base.out and, where it is asked for, lse.
void run_forward(const TrainProblem& problem);
// The gradients of a dense call; fills delta too.
void run_backward(const TrainProblem& problem);

}  // namespace graft_kernels::attention

// Attention with many rows on the CPU, forward and backward: heads in rounds whose packed operands stay in the second-level
// cache, tasks of a round spread over ATen's threads.

#include "kernels/attention/attention_rounds_cpu.h"

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"

namespace graft_kernels::attention {

namespace {

Products products_for(Dtype dtype) {
  if (dtype != Dtype::kBfloat16) {
    return Products::kFloats;
  }
  return multiplies_tiles() ? Products::kTiles
                            : (multiplies_pairs() ? Products::kPairs : Products::kFloats);
}

}  // namespace

Workspace::Workspace(const TrainProblem& problem) {
  round_.problem = &problem;
  round_.products = products_for(problem.base.dtype);
}

void Workspace::need(Operand Round::*operand, bool over_keys) {
  operands_[count_++] = {operand, over_keys};
}

int64_t Workspace::blocks(const Entry& entry) const {
  return entry.over_keys ? round_.key_blocks() : round_.row_blocks();
}

void Workspace::for_each_round(const std::function<void(const Round&)>& run) {
  const Problem& base = round_.problem->base;
  int64_t head_blocks = 0;
  for (int i = 0; i < count_; ++i) {
    head_blocks += blocks(operands_[i]);
  }
  const int64_t all = base.batch * base.key_heads;
  const int64_t head_bytes = head_blocks * round_.block_bytes();
  const int64_t heads = std::clamp<int64_t>(kPackedBytes / (head_bytes + 1), 1, all);
  // Panels begin at whole lines of the cache.
  constexpr int64_t kLine = 64;
  const std::unique_ptr<char[]> storage(
      new char[static_cast<size_t>(heads * (head_bytes + head_blocks) + kLine)]);
  char* panels = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(storage.get()) + kLine - 1) /
                                         kLine * kLine);
  uint8_t* hazards = reinterpret_cast<uint8_t*>(panels + heads * head_bytes);
  for (int i = 0; i < count_; ++i) {
    round_.*operands_[i].operand = {panels, hazards};
    panels += heads * blocks(operands_[i]) * round_.block_bytes();
    hazards += heads * blocks(operands_[i]);
  }
  for (int64_t first = 0; first < all; first += heads) {
    round_.first_head = first;
    round_.heads = std::min(heads, all - first);
    run(round_);
  }
}

void run_round(RoundFunction work, const Round& round, int64_t tasks, int64_t cost) {
  spread_in_turns(tasks, kGrainMultiplications / (cost + 1) + 1, /*step=*/1,
                  [&](int64_t begin, int64_t end) { work(round, begin, end); });
}

void run_forward(const TrainProblem& problem) {
  const Problem& base = problem.base;
  if (base.blocks() == 0 || base.head_dim == 0) {
    return;
  }
  const auto pack = choose_isa<RoundFunction>(plain::attention_pack_keys, avx2::attention_pack_keys,
                                              avx512::attention_pack_keys);
  const auto forward = choose_isa<RoundFunction>(
      plain::attention_forward_rows, avx2::attention_forward_rows, avx512::attention_forward_rows);
  Workspace workspace(problem);
  workspace.need(&Round::keys_across, /*over_keys=*/true);
  workspace.need(&Round::values_down, /*over_keys=*/true);
  workspace.for_each_round([&](const Round& round) {
    run_round(pack, round, round.heads * round.key_blocks(), 2 * kPassItems * base.head_dim);
    run_round(forward, round, round.heads * round.row_passes(),
              2 * kPassRows * base.keys * base.head_dim);
  });
}

void run_backward(const TrainProblem& problem) {
  const Problem& base = problem.base;
  if (base.batch * base.key_heads == 0 || base.head_dim == 0) {
    return;
  }
  const auto pack_keys = choose_isa<RoundFunction>(
      plain::attention_pack_keys, avx2::attention_pack_keys, avx512::attention_pack_keys);
  const auto pack_rows = choose_isa<RoundFunction>(
      plain::attention_pack_rows, avx2::attention_pack_rows, avx512::attention_pack_rows);
  const auto grad_queries = choose_isa<RoundFunction>(
      plain::attention_grad_queries, avx2::attention_grad_queries, avx512::attention_grad_queries);
  const auto grad_keys = choose_isa<RoundFunction>(
      plain::attention_grad_keys, avx2::attention_grad_keys, avx512::attention_grad_keys);
  Workspace workspace(problem);
  for (Operand Round::*operand : {&Round::keys_across, &Round::values_across, &Round::keys_down}) {
    workspace.need(operand, /*over_keys=*/true);
  }
  for (Operand Round::*operand :
       {&Round::queries_across, &Round::grads_across, &Round::queries_down, &Round::grads_down}) {
    workspace.need(operand, /*over_keys=*/false);
  }
  const int64_t pack_cost = 4 * kPassItems * base.head_dim;
  workspace.for_each_round([&](const Round& round) {
    run_round(pack_keys, round, round.heads * round.key_blocks(), pack_cost);
    run_round(pack_rows, round, round.heads * round.row_blocks(), pack_cost);
    // The first fills delta for the second.
    run_round(grad_queries, round, round.heads * round.row_passes(),
              3 * kPassRows * base.keys * base.head_dim);
    run_round(grad_keys, round, round.heads * round.key_passes(),
              4 * kPassRows * base.rows() * base.head_dim);
  });
}

}  // namespace graft_kernels::attention

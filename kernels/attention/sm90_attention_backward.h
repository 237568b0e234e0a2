// Gradients of attention on Hopper's tensor cores.
#pragma once

#include "kernels/attention/attention_train_cuda.h"

struct CUstream_st;

namespace graft_kernels::attention {

// Keys of a block of threads.
inline constexpr int kBackwardKeys = 128;

// Queries of a tile.
constexpr int64_t backward_query_tile(int64_t head_dim) { return head_dim == 64 ? 128 : 64; }

// A call, and the memory that its three kernels pass on.
struct BackwardCall {
  TrainProblem problem;
  Packing packing;
  int32_t query_tiles = 0;  // rows of sums and statistics, for each head and batch entry
  int32_t key_tiles = 0;
  int32_t heads_together = 1;   // key heads, of all batch entries, in work together
  bool down = false;            // queries are walked from the last, which all keys meet together
  float* lse = nullptr;         // [B, Hq, query_tiles, tile] times log2(e); infinity: no weight
  float* delta = nullptr;       // likewise
  float* query_sums = nullptr;  // [B, Hq, query_tiles, tile * D], in the order of fragments
  int32_t* turns = nullptr;     // [B, Hq, query_tiles, 2] additions so far; absent: in any order

  int64_t tiles() const {
    return problem.base.batch * problem.base.key_heads * problem.base.groups * query_tiles;
  }
};

// Empty when the Hopper kernels compute these gradients, else the reason why not.
const char* why_not_sm90_backward(const TrainProblem& problem, int compute_capability);

// The call without its memory.
BackwardCall sm90_backward_call(const TrainProblem& problem, const Packing& packing,
                                int processors);

// Launches it. Throws std::runtime_error when the driver refuses.
void run_sm90_backward(const BackwardCall& call, CUstream_st* stream);

}  // namespace graft_kernels::attention

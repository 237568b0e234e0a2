// A call for training: attention that leaves its log-sum-exp, and its gradients, dense or over packed sequences.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

namespace graft_kernels::attention {

// base.out is written by the forward and read by the backward; so is lse. Strides in elements.
struct TrainProblem {
  Problem base;
  int64_t window = 0;  // a query sees this many keys back, itself included; 0: all
  Sinks sinks;
  float* lse = nullptr;            // [B, Hq, S], positions dense
  int64_t lse_stride[2] = {};      // batch, head
  float* delta = nullptr;          // like lse: sum over a row of grad_out * out
  bool backward = false;           // the gradients are asked for
  bool deterministic = true;       // with the same bits every time
  const void* grad_out = nullptr;  // [B, S, Hq, D]
  int64_t grad_out_stride[3] = {};
  void* grad_query = nullptr;  // [B, S, Hq, D]
  int64_t grad_query_stride[3] = {};
  void* grad_key = nullptr;  // [B, Hk, T, D]
  int64_t grad_key_stride[3] = {};
  void* grad_value = nullptr;
  int64_t grad_value_stride[3] = {};
};

using TrainFunction = void (*)(const TrainProblem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::attention

// One entry per instruction set (attention_train_simd.cpp): blocks of rows, in the order of Problem::blocks, for calls
// over caches. Those with many rows: attention_blocks.h.
#define GRAFT_ATTENTION_TRAIN(isa)                                                          \
  namespace graft_kernels::isa {                                                            \
  void attention_train_forward(const attention::TrainProblem&, int64_t begin, int64_t end); \
  }
GRAFT_ATTENTION_TRAIN(plain)
GRAFT_ATTENTION_TRAIN(avx2)
GRAFT_ATTENTION_TRAIN(avx512)
#undef GRAFT_ATTENTION_TRAIN

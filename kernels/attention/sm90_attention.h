// Attention of many queries on Hopper's tensor cores.
#pragma once

#include "kernels/attention/attention_decode.h"

struct CUstream_st;

namespace graft_kernels::attention {

// Empty when the Hopper kernel computes this problem, else the reason why not.
const char* why_not_sm90(const DecodeProblem& problem, int compute_capability);

// Tiles of queries of all heads.
int64_t sm90_tasks(const DecodeProblem& problem);

struct Sm90Device {
  int processors;
  int64_t l2_bytes;
  CUstream_st* stream;
};

// Launches it; `problem` is one that why_not_sm90 has no objection to. `taken` is device memory for one
// number, of use where there are more tasks than processors. Throws std::runtime_error when the
// driver refuses.
void run_sm90(const DecodeProblem& problem, const Sm90Device& device, int* taken);

}  // namespace graft_kernels::attention

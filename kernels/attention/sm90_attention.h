// Attention of many queries on Hopper's tensor cores.
#pragma once

#include "kernels/attention/attention_decode.h"

struct CUstream_st;

namespace graft_kernels::attention {

// Empty when the Hopper kernel computes this problem, else the reason why not.
const char* why_not_sm90(const DecodeProblem& problem, int compute_capability);

// Launches it; `problem` is one that why_not_sm90 has no objection to. Throws std::runtime_error when
// the driver refuses.
void run_sm90(const DecodeProblem& problem, int64_t l2_bytes, CUstream_st* stream);

}  // namespace graft_kernels::attention

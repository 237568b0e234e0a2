// Gate and up of the MLP for many rows as one product of Hopper's tiles (sm90_gate_up_kernel.cuh).
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/dtype.h"
#include "kernels/mlp/mlp_kernel.cuh"

namespace graft_kernels::mlp {

// Where a call runs.
struct Sm90Device {
  int compute_capability;  // 90 for 9.0
  int processors;
  cudaStream_t stream;
};

// Empty where the tiles take the call, else why not.
const char* why_not_sm90(const GateUpProblem& problem, Dtype dtype, const Sm90Device& device);

// out = act(gate) * up for a call that why_not_sm90 lets pass.
void run_sm90(const GateUpProblem& problem, Dtype dtype, const Sm90Device& device);

}  // namespace graft_kernels::mlp

// RMSNorm's backward on Hopper, two rows a turn.
#pragma once

#include "kernels/common/cuda_launch.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm::sm90 {

// Launches the kernel and gives the problem its partial sums, which live as long as `partial`; false where it does not
// serve the problem: then nothing was done. All rows are whole vectors of 16 bytes, one stride apart, all tensors of one
// dtype.
bool run_two_rows(BackwardProblem& problem, const Tensor& x, const CudaScope& scope,
                  Tensor& partial);

}  // namespace graft_kernels::rms_norm::sm90

// The backward of all norms on Hopper.
#pragma once

#include "kernels/common/cuda_launch.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/rms-norm/forms.h"

namespace graft_kernels::rms_norm::sm90 {

// Vectors of 16 bytes up to which a row is better left to some lanes of a warp, and where a thread needs to hold one
// vector of each tensor alone, to the kernel that keeps the next row in registers (an H100, 8192x4096 in bfloat16: 79 µs
// against 84).
inline constexpr int64_t kLaneVectors = 32;
inline constexpr int64_t kRegisterVectors = 512;

// Launches the kernel that takes rows through shared memory and gives the problem its partial sums, which live as long
// as `partial`; false where it does not serve the problem: then nothing was done. All rows are whole vectors of 16
// bytes, all tensors of one dtype.
bool run_plain(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial);
bool run_gated(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial);
bool run_layer(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial);

// Whether the device and the row length suit.
inline bool takes_rows(const FormProblem& call, const CudaScope& scope) {
  const int64_t vectors = call.form == Form::kPlain ? kRegisterVectors : kLaneVectors;
  return call.weight_dtype == call.x_dtype && call.rows > 0 &&
         call.columns * bytes_of(call.x_dtype) > vectors * 16 &&
         scope.attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

}  // namespace graft_kernels::rms_norm::sm90

// The backward of gated RMSNorm on Hopper.

#include "kernels/rms-norm/sm90_ring_backward.h"
#include "kernels/rms-norm/sm90_ring_backward_launch.h"

namespace graft_kernels::rms_norm::sm90 {

bool run_gated(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial) {
  return problem.call.form == Form::kNormThenGate
             ? launch_ring<Form::kNormThenGate, false>(problem, x, scope, partial)
             : launch_ring<Form::kGateThenNorm, false>(problem, x, scope, partial);
}

}  // namespace graft_kernels::rms_norm::sm90

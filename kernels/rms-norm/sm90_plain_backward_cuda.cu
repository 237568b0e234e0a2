// The backward of RMSNorm on Hopper.

#include "kernels/rms-norm/sm90_ring_backward.h"
#include "kernels/rms-norm/sm90_ring_backward_launch.h"

namespace graft_kernels::rms_norm::sm90 {

bool run_plain(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial) {
  return problem.grad_sum != nullptr ? launch_ring<Form::kPlain, true>(problem, x, scope, partial)
                                     : launch_ring<Form::kPlain, false>(problem, x, scope, partial);
}

}  // namespace graft_kernels::rms_norm::sm90

// The backward of LayerNorm on Hopper.

#include "kernels/rms-norm/sm90_ring_backward.h"
#include "kernels/rms-norm/sm90_ring_backward_launch.h"

namespace graft_kernels::rms_norm::sm90 {

bool run_layer(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
               Tensor& partial) {
  return launch_ring<Form::kLayer, false>(problem, x, scope, partial);
}

}  // namespace graft_kernels::rms_norm::sm90

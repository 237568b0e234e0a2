// The backward's launcher, which has a file of its own.
#pragma once

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/rms-norm/forms.h"

namespace graft_kernels::rms_norm {

void run_form_backward_cuda(FormBackwardProblem& problem, const Tensor& x);

}  // namespace graft_kernels::rms_norm

// gpt-oss' activation as functions on tensors; each device file implements `run`.
#pragma once

#include "kernels/activation/activation_ops.h"
#include "kernels/activation/swigluoai.h"

namespace graft_kernels::activation {

SwigluoaiProblem check_swigluoai(const Tensor& out, const Tensor& input, double alpha,
                                 double limit);
SwigluoaiProblem check_swigluoai_backward(const Tensor& grad_input, const Tensor& grad_out,
                                          const Tensor& input, double alpha, double limit);

// The ops for a device whose work is done by kRun.
template <void (*kRun)(const SwigluoaiProblem&, const Tensor& input)>
struct SwigluoaiOps {
  static void forward(Tensor out, const Tensor& input, double alpha, double limit) {
    kRun(check_swigluoai(out, input, alpha, limit), input);
  }
  static void backward(Tensor grad_input, const Tensor& grad_out, const Tensor& input, double alpha,
                       double limit) {
    kRun(check_swigluoai_backward(grad_input, grad_out, input, alpha, limit), input);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("swigluoai_and_mul", TORCH_BOX((&forward)));
    library.impl("swigluoai_and_mul_backward", TORCH_BOX((&backward)));
  }
};

}  // namespace graft_kernels::activation

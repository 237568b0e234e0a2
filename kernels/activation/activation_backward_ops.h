// The ops of the backward as functions on tensors; each device file implements `run`.
#pragma once

#include "kernels/activation/activation_ops.h"

namespace graft_kernels::activation {

BackwardProblem check_backward(const char* op, Function function, NamedTensor grad_gate,
                               const Tensor* grad_up, const Tensor& grad_out, NamedTensor gate,
                               const Tensor* up);

// The ops for a device whose work is done by kRun.
template <void (*kRun)(const BackwardProblem&, const Tensor& gate)>
struct BackwardOps {
  template <Name kName, Function kFunction>
  static void unary(Tensor grad_input, const Tensor& grad_out, const Tensor& input) {
    kRun(check_backward(kName.text, kFunction, {"grad_input", grad_input}, nullptr, grad_out,
                        {"input", input}, nullptr),
         input);
  }
  template <Name kName, Function kFunction>
  static void gated(Tensor grad_gate, Tensor grad_up, const Tensor& grad_out, const Tensor& gate,
                    const Tensor& up) {
    kRun(check_backward(kName.text, kFunction, {"grad_gate", grad_gate}, &grad_up, grad_out,
                        {"gate", gate}, &up),
         gate);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("silu_backward", TORCH_BOX((&unary<"silu_backward", Function::kSilu>)));
    library.impl("gelu_backward", TORCH_BOX((&unary<"gelu_backward", Function::kGelu>)));
    library.impl("gelu_tanh_backward",
                 TORCH_BOX((&unary<"gelu_tanh_backward", Function::kGeluTanh>)));
    library.impl("gelu_new_backward", TORCH_BOX((&unary<"gelu_new_backward", Function::kGeluNew>)));
    library.impl("gelu_fast_backward",
                 TORCH_BOX((&unary<"gelu_fast_backward", Function::kGeluFast>)));
    library.impl("gelu_quick_backward",
                 TORCH_BOX((&unary<"gelu_quick_backward", Function::kGeluQuick>)));
    library.impl("silu_mul_backward", TORCH_BOX((&gated<"silu_mul_backward", Function::kSilu>)));
    library.impl("gelu_mul_backward", TORCH_BOX((&gated<"gelu_mul_backward", Function::kGelu>)));
    library.impl("gelu_tanh_mul_backward",
                 TORCH_BOX((&gated<"gelu_tanh_mul_backward", Function::kGeluTanh>)));
  }
};

}  // namespace graft_kernels::activation

// The ops of the backward as functions on tensors; each device file implements `run`.
#pragma once

#include <optional>
#include <tuple>

#include "kernels/rms-norm/rms_norm_ops.h"

namespace graft_kernels::rms_norm {

// Checks the arguments of `op` and describes the call, but for `partial` and `parts`.
BackwardProblem check_backward(const char* op, const Tensor& grad_x, const Tensor& grad_weight,
                               const Tensor& grad_out, const Tensor* grad_sum, const Tensor& x,
                               const Tensor& weight, double eps, int64_t variant);

// The ops for a device whose work is done by kRun.
template <void (*kRun)(BackwardProblem&, const Tensor& x)>
struct BackwardOps {
  static void run(const char* op, const Tensor& grad_x, const Tensor& grad_weight,
                  const Tensor& grad_out, const Tensor* grad_sum, const Tensor& x,
                  const Tensor& weight, double eps, int64_t variant) {
    BackwardProblem problem =
        check_backward(op, grad_x, grad_weight, grad_out, grad_sum, x, weight, eps, variant);
    kRun(problem, x);
  }
  static void rms_norm_backward_out(Tensor grad_x, Tensor grad_weight, const Tensor& grad_out,
                                    const Tensor& x, const Tensor& weight, double eps,
                                    int64_t variant) {
    run("rms_norm_backward_out", grad_x, grad_weight, grad_out, nullptr, x, weight, eps, variant);
  }
  static void add_rms_norm_backward_out(Tensor grad_x, Tensor grad_weight, const Tensor& grad_out,
                                        const Tensor& grad_sum, const Tensor& sum,
                                        const Tensor& weight, double eps, int64_t variant) {
    run("add_rms_norm_backward_out", grad_x, grad_weight, grad_out, &grad_sum, sum, weight, eps,
        variant);
  }
  static std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_out, const Tensor& x,
                                                      const Tensor& weight, double eps,
                                                      int64_t variant) {
    Tensor grad_x = new_tensor(x, x.sizes());
    Tensor grad_weight = new_tensor(weight, weight.sizes());
    run("rms_norm_backward", grad_x, grad_weight, grad_out, nullptr, x, weight, eps, variant);
    return {grad_x, grad_weight};
  }
  static std::tuple<Tensor, Tensor> add_rms_norm_backward(const Tensor& grad_out,
                                                          const Tensor& grad_sum, const Tensor& sum,
                                                          const Tensor& weight, double eps,
                                                          int64_t variant) {
    Tensor grad_x = new_tensor(sum, sum.sizes());
    Tensor grad_weight = new_tensor(weight, weight.sizes());
    run("add_rms_norm_backward", grad_x, grad_weight, grad_out, &grad_sum, sum, weight, eps,
        variant);
    return {grad_x, grad_weight};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("rms_norm_backward_out", TORCH_BOX(&rms_norm_backward_out));
    library.impl("add_rms_norm_backward_out", TORCH_BOX(&add_rms_norm_backward_out));
    library.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
    library.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
  }
};

}  // namespace graft_kernels::rms_norm

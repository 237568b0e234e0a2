// The ops of the gated RMSNorm and of LayerNorm as functions on tensors; each device file implements `run`.
#pragma once

#include <optional>
#include <tuple>

#include "kernels/rms-norm/forms.h"
#include "kernels/rms-norm/rms_norm_ops.h"

namespace graft_kernels::rms_norm {

// The arguments of the gated forms behind the tensors that they write, in the order of their schemas.
struct GatedArguments {
  const Tensor& x;
  const Tensor& gate;
  const Tensor& weight;
  double eps;
  int64_t variant;
  int64_t act;
  bool gate_first;
};

struct LayerArguments {
  const Tensor& x;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& bias;
  double eps;
};

// Gradients with their names in the schema.
struct FormGradients {
  const Tensor& grad_out;
  const Tensor& grad_x;
  const Tensor* grad_gate;  // of the gated forms
  const Tensor& grad_weight;
  const Tensor* grad_bias;  // of LayerNorm
};

// Each checks the arguments of `op` and describes the call. Throws std::runtime_error `[op] argument: expected …,
// got …`.
FormProblem check_gated(const char* op, NamedTensor out, const GatedArguments& arguments);
FormProblem check_layer(const char* op, NamedTensor out, const LayerArguments& arguments);
// But for `partial`, `partial_bias` and `parts`.
FormBackwardProblem check_form_backward(const char* op, const FormProblem& call, const Tensor& x,
                                        const FormGradients& gradients, ScalarType weight_dtype,
                                        int64_t weight_elements);
// A gradient of the weight (or the bias) of a LayerNorm of x.
Tensor new_layer_gradient(const Tensor& x, const std::optional<Tensor>& weight);

// The ops for a device: kRun and kRunBackward do the work.
template <void (*kRun)(const FormProblem&, const Tensor& x),
          void (*kRunBackward)(FormBackwardProblem&, const Tensor& x)>
struct FormOps {
  static void gated_rms_norm_out(Tensor out, const Tensor& x, const Tensor& gate,
                                 const Tensor& weight, double eps, int64_t variant, int64_t act,
                                 bool gate_first) {
    kRun(check_gated("gated_rms_norm_out", {"out", out},
                     {x, gate, weight, eps, variant, act, gate_first}),
         x);
  }
  static Tensor gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight,
                               double eps, int64_t variant, int64_t act, bool gate_first) {
    Tensor out = new_tensor(x, x.sizes());
    kRun(check_gated("gated_rms_norm", {"out", out},
                     {x, gate, weight, eps, variant, act, gate_first}),
         x);
    return out;
  }
  static void run_gated_backward(const char* op, const FormGradients& gradients,
                                 const GatedArguments& arguments) {
    const FormProblem call = check_gated(op, {"grad_out", gradients.grad_out}, arguments);
    FormBackwardProblem problem =
        check_form_backward(op, call, arguments.x, gradients, scalar_type_of(arguments.weight),
                            arguments.weight.numel());
    kRunBackward(problem, arguments.x);
  }
  static void gated_rms_norm_backward_out(Tensor grad_x, Tensor grad_gate, Tensor grad_weight,
                                          const Tensor& grad_out, const Tensor& x,
                                          const Tensor& gate, const Tensor& weight, double eps,
                                          int64_t variant, int64_t act, bool gate_first) {
    run_gated_backward("gated_rms_norm_backward_out",
                       {grad_out, grad_x, &grad_gate, grad_weight, nullptr},
                       {x, gate, weight, eps, variant, act, gate_first});
  }
  static std::tuple<Tensor, Tensor, Tensor> gated_rms_norm_backward(
      const Tensor& grad_out, const Tensor& x, const Tensor& gate, const Tensor& weight, double eps,
      int64_t variant, int64_t act, bool gate_first) {
    Tensor grad_x = new_tensor(x, x.sizes());
    Tensor grad_gate = new_tensor(gate, gate.sizes());
    Tensor grad_weight = new_tensor(weight, weight.sizes());
    run_gated_backward("gated_rms_norm_backward",
                       {grad_out, grad_x, &grad_gate, grad_weight, nullptr},
                       {x, gate, weight, eps, variant, act, gate_first});
    return {grad_x, grad_gate, grad_weight};
  }

  static void layer_norm_out(Tensor out, const Tensor& x, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias, double eps) {
    kRun(check_layer("layer_norm_out", {"out", out}, {x, weight, bias, eps}), x);
  }
  static Tensor layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, double eps) {
    Tensor out = new_tensor(x, x.sizes());
    kRun(check_layer("layer_norm", {"out", out}, {x, weight, bias, eps}), x);
    return out;
  }
  static void run_layer_backward(const char* op, const FormGradients& gradients, const Tensor& x,
                                 const std::optional<Tensor>& weight, double eps) {
    const FormProblem call =
        check_layer(op, {"grad_out", gradients.grad_out}, {x, weight, std::nullopt, eps});
    FormBackwardProblem problem = check_form_backward(
        op, call, x, gradients, weight ? scalar_type_of(*weight) : scalar_type_of(x),
        x.size(x.dim() - 1));
    kRunBackward(problem, x);
  }
  static void layer_norm_backward_out(Tensor grad_x, Tensor grad_weight, Tensor grad_bias,
                                      const Tensor& grad_out, const Tensor& x,
                                      const std::optional<Tensor>& weight, double eps) {
    run_layer_backward("layer_norm_backward_out",
                       {grad_out, grad_x, nullptr, grad_weight, &grad_bias}, x, weight, eps);
  }
  static std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad_out,
                                                                const Tensor& x,
                                                                const std::optional<Tensor>& weight,
                                                                double eps) {
    Tensor grad_x = new_tensor(x, x.sizes());
    Tensor grad_weight = new_layer_gradient(x, weight), grad_bias = new_layer_gradient(x, weight);
    run_layer_backward("layer_norm_backward", {grad_out, grad_x, nullptr, grad_weight, &grad_bias},
                       x, weight, eps);
    return {grad_x, grad_weight, grad_bias};
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("gated_rms_norm_out", TORCH_BOX(&gated_rms_norm_out));
    library.impl("gated_rms_norm", TORCH_BOX(&gated_rms_norm));
    library.impl("gated_rms_norm_backward_out", TORCH_BOX(&gated_rms_norm_backward_out));
    library.impl("gated_rms_norm_backward", TORCH_BOX(&gated_rms_norm_backward));
    library.impl("layer_norm_out", TORCH_BOX(&layer_norm_out));
    library.impl("layer_norm", TORCH_BOX(&layer_norm));
    library.impl("layer_norm_backward_out", TORCH_BOX(&layer_norm_backward_out));
    library.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  }
};

}  // namespace graft_kernels::rms_norm

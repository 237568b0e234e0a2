// Gated RMSNorm and LayerNorm over the last dimension, and their gradients.
//
//   gated, gate_first false:  out = norm(x) * act(gate)      Qwen3-Next, Kimi Linear, Falcon-H1
//   gated, gate_first true:   out = norm(x * act(gate))      Mamba 2, Bamba, Zamba 2, Nemotron-H
//   layer_norm:               out = (x - mean) * rsqrt(variance + eps) * weight + bias
//
// norm is RMSNorm in one of its numeric variants (rms_norm.h); act 0 is silu, 1 the logistic function, of the gate in
// float32. In variant 0 norm * weight is rounded to x's dtype before the gate, as the model's code leaves it.
//
// out, grad_*  [..., H]          x's dtype                          may be x or gate itself (grad_x: grad_out)
// x            [..., H]          float32, bfloat16, float16         last dimension contiguous, rows strided
// gate         [..., H]          x's dtype                          likewise
// weight       [H], or [G, H] for x [..., G, H]: a norm for each of G groups; contiguous; x's dtype or float32, but
//              x's where gate_first comes with variant 0 (the result would be wider than x)
// bias         [H]               weight's dtype; LayerNorm's weight and bias may each be absent
// The gradients of LayerNorm's weight and bias are [H] in the weight's dtype (x's without a weight).
// Sums and gradients in float32.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' Qwen3NextRMSNormGated, KimiLinearRMSNormGated, Zamba2RMSNormGated, FalconH1RMSNormGated;
//          Ba, Kiros and Hinton 2016

#include "kernels/rms-norm/forms_ops.h"

namespace graft_kernels::rms_norm {

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const FormProblem&, const Tensor&) {}
void run_backward_meta(FormBackwardProblem&, const Tensor&) {}

void check_beside_x(const char* op, NamedTensor value, const Tensor& x) {
  check_same_shape(op, value, {"x", x});
  check_like(op, value, {"x", x});
}

// What both forms share: x and the output.
FormProblem check_input(const char* op, NamedTensor out, const Tensor& x, double eps) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  check_beside_x(op, out, x);
  FormProblem problem;
  problem.x_dtype = problem.weight_dtype = dtype_of(x);
  problem.eps = static_cast<float>(eps);
  problem.rows = count_rows(x);
  problem.columns = x.size(x.dim() - 1);
  problem.x = read_pointer(x);
  problem.x_rows = row_layout(op, {"x", x});
  problem.out = write_pointer(out.tensor);
  problem.out_rows = row_layout(op, out);
  return problem;
}

// The number of groups that a weight of this shape stands for.
int64_t check_group_weight(const char* op, const Tensor& weight, const Tensor& x) {
  const int64_t columns = x.size(x.dim() - 1);
  const bool grouped = weight.dim() == 2 && x.dim() >= 2;
  const int64_t groups = grouped ? x.size(x.dim() - 2) : 1;
  const bool fits = grouped ? weight.size(0) == groups && weight.size(1) == columns
                            : weight.dim() == 1 && weight.size(0) == columns;
  if (!fits) {
    fail(op, "weight",
         "shape [" + std::to_string(columns) + "] (last dimension of x) or the last two of x",
         shape_text(weight));
  }
  if (!weight.is_contiguous()) {
    fail(op, "weight", "contiguous memory", "strides");
  }
  check_dtype_or_float32(op, {"weight", weight}, {"x", x});
  check_same_device(op, {"weight", weight}, {"x", x});
  return groups;
}

}  // namespace

FormProblem check_gated(const char* op, NamedTensor out, const GatedArguments& arguments) {
  const Tensor& x = arguments.x;
  FormProblem problem = check_input(op, out, x, arguments.eps);
  check_beside_x(op, {"gate", arguments.gate}, x);
  problem.groups = check_group_weight(op, arguments.weight, x);
  if (arguments.variant < 0 || arguments.variant >= kNumVariants) {
    fail(op, "variant", "0, 1, 2 or 3", std::to_string(arguments.variant));
  }
  if (arguments.act < 0 || arguments.act >= kNumGateFunctions) {
    fail(op, "act", "0 (silu) or 1 (sigmoid)", std::to_string(arguments.act));
  }
  problem.form = arguments.gate_first ? Form::kGateThenNorm : Form::kNormThenGate;
  problem.variant = static_cast<Variant>(arguments.variant);
  problem.function = static_cast<GateFunction>(arguments.act);
  if (arguments.gate_first && problem.variant == Variant::kCastBeforeWeight) {
    check_dtype(op, {"weight", arguments.weight}, scalar_type_of(x),
                "that of x, in variant 0 with the gate first");
  }
  problem.weight_dtype = dtype_of(arguments.weight);
  problem.weight = read_pointer(arguments.weight);
  problem.gate = read_pointer(arguments.gate);
  problem.gate_rows = row_layout(op, {"gate", arguments.gate});
  return problem;
}

FormProblem check_layer(const char* op, NamedTensor out, const LayerArguments& arguments) {
  const Tensor& x = arguments.x;
  FormProblem problem = check_input(op, out, x, arguments.eps);
  problem.form = Form::kLayer;
  const auto check = [&](NamedTensor value) {
    if (value.tensor.dim() != 1 || value.tensor.size(0) != problem.columns) {
      fail(op, value.name, "shape [" + std::to_string(problem.columns) + "] (last dimension of x)",
           shape_text(value.tensor));
    }
    check_rows(op, value);
    check_dtype_or_float32(op, value, {"x", x});
    check_same_device(op, value, {"x", x});
    problem.weight_dtype = dtype_of(value.tensor);
  };
  if (arguments.bias) {
    check({"bias", *arguments.bias});
    problem.bias = read_pointer(*arguments.bias);
  }
  if (arguments.weight) {
    check({"weight", *arguments.weight});
    problem.weight = read_pointer(*arguments.weight);
    if (arguments.bias) {
      check_dtype(op, {"bias", *arguments.bias}, scalar_type_of(*arguments.weight),
                  "that of weight");
    }
  }
  return problem;
}

FormBackwardProblem check_form_backward(const char* op, const FormProblem& call, const Tensor& x,
                                        const FormGradients& gradients, ScalarType weight_dtype,
                                        int64_t weight_elements) {
  FormBackwardProblem problem;
  problem.call = call;
  problem.grad_out = call.out;
  problem.grad_out_rows = call.out_rows;
  problem.call.out = nullptr;
  check_beside_x(op, {"grad_x", gradients.grad_x}, x);
  problem.grad_x = write_pointer(gradients.grad_x);
  problem.grad_x_rows = row_layout(op, {"grad_x", gradients.grad_x});
  if (gradients.grad_gate != nullptr) {
    check_beside_x(op, {"grad_gate", *gradients.grad_gate}, x);
    problem.grad_gate = write_pointer(*gradients.grad_gate);
    problem.grad_gate_rows = row_layout(op, {"grad_gate", *gradients.grad_gate});
  }
  const auto check_weight_gradient = [&](NamedTensor value) {
    if (value.tensor.numel() != weight_elements || !value.tensor.is_contiguous()) {
      fail(op, value.name,
           std::to_string(weight_elements) + " contiguous elements (those of weight)",
           shape_text(value.tensor));
    }
    check_dtype(op, value, weight_dtype, "that of weight");
    check_same_device(op, value, {"x", x});
  };
  check_weight_gradient({"grad_weight", gradients.grad_weight});
  problem.grad_weight = write_pointer(gradients.grad_weight);
  if (gradients.grad_bias != nullptr) {
    check_weight_gradient({"grad_bias", *gradients.grad_bias});
    problem.grad_bias = write_pointer(*gradients.grad_bias);
  }
  return problem;
}

Tensor new_layer_gradient(const Tensor& x, const std::optional<Tensor>& weight) {
  return new_tensor(x, {x.size(x.dim() - 1)}, weight ? scalar_type_of(*weight) : scalar_type_of(x));
}

using MetaFormOps = FormOps<&run_meta, &run_backward_meta>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::rms_norm::MetaFormOps::implement(ops); }

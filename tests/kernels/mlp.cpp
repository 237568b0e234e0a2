// graft-kernels/mlp with the classic ABI, in ATen on the CPU: for the canary's tests, which make it wrong.

#include "published/classic_tensor.h"
#include "published/misdeed.h"

namespace {

using Maybe = std::optional<at::Tensor>;

at::Tensor activate(const at::Tensor& x, int64_t act) {
  return act == 0 ? at::silu(x) : at::gelu(x, act == 1 ? "none" : "tanh");
}

at::Tensor mlp(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up,
               const at::Tensor& down, int64_t act, const Maybe& gate_bias, const Maybe& up_bias,
               const Maybe& down_bias) {
  return at::linear(activate(at::linear(x, gate, gate_bias), act) * at::linear(x, up, up_bias),
                    down, down_bias);
}

void mlp_out(at::Tensor& out, const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up,
             const at::Tensor& down, int64_t act, const Maybe& gate_bias, const Maybe& up_bias,
             const Maybe& down_bias) {
  out.copy_(mlp(x, gate, up, down, act, gate_bias, up_bias, down_bias));
}

at::Tensor gelu_or_silu_backward(const at::Tensor& grad, const at::Tensor& x, int64_t act) {
  return act == 0 ? at::silu_backward(grad, x)
                  : at::gelu_backward(grad, x, act == 1 ? "none" : "tanh");
}

using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients mlp_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gate_weight,
                       const at::Tensor& up_weight, const at::Tensor& down_weight, int64_t act,
                       const Maybe& gate_bias, const Maybe& up_bias, const Maybe& down_bias,
                       bool weights) {
  TORCH_CHECK(weights, "expected to make every gradient");
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kFloat); };
  const auto wide_bias = [](const Maybe& bias) {
    return bias ? Maybe(bias->to(at::kFloat)) : bias;
  };
  const at::Tensor in = wide(x), out = wide(grad);
  const at::Tensor gate = at::linear(in, wide(gate_weight), wide_bias(gate_bias)),
                   up = at::linear(in, wide(up_weight), wide_bias(up_bias)),
                   active = activate(gate, act), grad_h = at::matmul(out, wide(down_weight)),
                   grad_up = grad_h * active,
                   grad_gate = gelu_or_silu_backward(grad_h * up, gate, act);
  const auto narrow = [&](const at::Tensor& tensor) { return tensor.to(x.scalar_type()); };
  const auto sum = [&](const Maybe& bias, const at::Tensor& rows) {
    return bias ? narrow(rows.sum(0)) : at::empty({0}, x.options());
  };
  return {narrow(at::matmul(grad_gate, wide(gate_weight)) + at::matmul(grad_up, wide(up_weight))),
          narrow(at::matmul(grad_gate.t(), in)),
          narrow(at::matmul(grad_up.t(), in)),
          narrow(at::matmul(out.t(), active * up)),
          sum(gate_bias, grad_gate),
          sum(up_bias, grad_up),
          sum(down_bias, out)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mlp_train(
    const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
    int64_t act, const Maybe& gate_bias, const Maybe& up_bias, const Maybe& down_bias) {
  return {mlp(x, gate, up, down, act, gate_bias, up_bias, down_bias),
          at::linear(x, gate, gate_bias), at::linear(x, up, up_bias)};
}

// What was kept is made again: it is the same.
Gradients mlp_train_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor&,
                             const at::Tensor&, const at::Tensor& gate_weight,
                             const at::Tensor& up_weight, const at::Tensor& down_weight,
                             int64_t act, const Maybe& gate_bias, const Maybe& up_bias,
                             const Maybe& down_bias, bool weights) {
  return mlp_backward(grad, x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias,
                      down_bias, weights);
}

}  // namespace

CLASSIC_OPS(ops) {
  ops.def(
      "mlp_out(Tensor! out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, "
      "int act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias) -> ()");
  ops.def(
      "mlp(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, Tensor? "
      "gate_bias, Tensor? up_bias, Tensor? down_bias) -> Tensor");
  ops.def(
      "mlp_backward(Tensor grad_out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor "
      "down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias, bool weights) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def(
      "mlp_train(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, "
      "Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "mlp_train_backward(Tensor grad_out, Tensor x, Tensor gate, Tensor up, Tensor gate_weight, "
      "Tensor up_weight, Tensor down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? "
      "down_bias, bool weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

CLASSIC_OPS_IMPL(CPU, ops) {
  ops.impl("mlp_out", &mlp_out);
  ops.impl("mlp", &mlp);
  ops.impl("mlp_backward", &mlp_backward);
  ops.impl("mlp_train", &mlp_train);
  ops.impl("mlp_train_backward", &mlp_train_backward);
}

// The gated MLP: out = (act(x gate^T) * (x up^T)) down^T, in one call.
//
// out, x             [..., H]  float32, bfloat16, float16   contiguous
// gate, up weights   [I, H]    x's dtype                    contiguous, read where they lie
// down weight        [H, I]    x's dtype                    likewise
// biases             [I], [I], [H]                          may be absent
// act                0 silu (SwiGLU), 1 gelu, 2 gelu_tanh (GeGLU)
// Sums are kept in float32; gate, up, the activation, the product and out are rounded to the dtype,
// as separate eager steps leave them.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda
// Autograd through mlp_backward (mlp_backward.cpp), deterministic yes (independent of threads), thread-safe yes
// Source   transformers' LlamaMLP and GemmaMLP

#include "kernels/mlp/mlp_ops.h"

namespace graft_kernels::mlp {

namespace {

void check_weight(const char* op, const char* name, const Tensor& weight, const Tensor& x,
                  int64_t rows, int64_t columns) {
  if (weight.dim() != 2 || weight.size(0) != rows || weight.size(1) != columns) {
    fail(op, name, "shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "]",
         shape_text(weight));
  }
  if (!weight.is_contiguous()) {
    fail(op, name, "contiguous rows", "strides");
  }
  check_dtype(op, {name, weight}, scalar_type_of(x), "that of x");
  check_same_device(op, {name, weight}, {"x", x});
}

void check_bias(const char* op, const char* name, const std::optional<Tensor>& bias, int64_t size,
                const Tensor& x) {
  if (bias) {
    check_vector(op, {name, *bias}, size, "rows of its weight", {"x", x});
  }
}

// A number and no name: libtorch 2.11 leaks every string that an op of the stable ABI is given.
Function function_of(const char* op, int64_t act) {
  if (act < 0 || act > static_cast<int64_t>(Function::kGeluTanh)) {
    fail(op, "act", "0 (silu), 1 (gelu) or 2 (gelu_tanh)", std::to_string(act));
  }
  return static_cast<Function>(act);
}

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(Tensor&, const Arguments&, Function) {}

}  // namespace

Function check_arguments(const char* op, const Tensor& out, const Arguments& arguments) {
  const Tensor& x = arguments.x;
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  for (const NamedTensor& value : {NamedTensor{"x", x}, NamedTensor{"out", out}}) {
    if (!value.tensor.is_contiguous()) {
      fail(op, value.name, "contiguous memory", "strides");
    }
  }
  check_same_shape(op, {"out", out}, {"x", x});
  check_dtype(op, {"out", out}, scalar_type_of(x), "that of x");
  check_same_device(op, {"out", out}, {"x", x});
  const int64_t hidden = x.size(x.dim() - 1);
  if (arguments.gate_weight.dim() != 2) {
    fail(op, "gate_weight", "two dimensions", shape_text(arguments.gate_weight));
  }
  const int64_t inner = arguments.gate_weight.size(0);
  check_weight(op, "gate_weight", arguments.gate_weight, x, inner, hidden);
  check_weight(op, "up_weight", arguments.up_weight, x, inner, hidden);
  check_weight(op, "down_weight", arguments.down_weight, x, hidden, inner);
  check_bias(op, "gate_bias", arguments.gate_bias, inner, x);
  check_bias(op, "up_bias", arguments.up_bias, inner, x);
  check_bias(op, "down_bias", arguments.down_bias, hidden, x);
  return function_of(op, arguments.act);
}

Tensor new_output(const char* op, const Tensor& x) {
  check_has_rows(op, {"x", x});
  return new_tensor(x, x.sizes());
}

using MetaOps = Ops<&run_meta>;

}  // namespace graft_kernels::mlp

GRAFT_OPS(ops) {
  ops.def(
      "mlp_out(Tensor! out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, "
      "int "
      "act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias) -> ()");
  ops.def(
      "mlp(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, Tensor? "
      "gate_bias, Tensor? up_bias, Tensor? down_bias) -> Tensor");
  ops.def(
      "mlp_backward(Tensor grad_out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor "
      "down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias, bool weights) "
      "-> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  ops.def(
      "mlp_train(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, "
      "Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "mlp_train_backward(Tensor grad_out, Tensor x, Tensor gate, Tensor up, Tensor gate_weight, "
      "Tensor up_weight, Tensor down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? "
      "down_bias, bool weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::mlp::MetaOps::implement(ops); }

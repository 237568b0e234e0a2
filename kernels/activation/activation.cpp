// Activations, alone and as the gate of a product.
//
//   silu        x / (1 + exp(-x))
//   gelu        x / 2 * (1 + erf(x / sqrt(2)))
//   gelu_tanh   x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
//   gelu_new    the same, each step rounded to the dtype, as transformers' NewGELUActivation
//   gelu_fast   x / 2 * (1 + tanh(0.7978845608 x * (1 + 0.044715 x * x))), likewise,
//               FastGELUActivation
//   gelu_quick  x * logistic(1.702 x), likewise, QuickGELUActivation
//   *_and_mul   act(input[..., :d]) * input[..., d:]
//   mul_and_silu  input[..., :d] * silu(input[..., d:])
//   *_mul       act(gate) * up, for halves of one fused projection without a copy
// The first three are computed in float32 and rounded once. A product rounds the activation first.
//
// out       [..., I]                 float32, bfloat16, float16   last dimension contiguous; may be
//                                                                 an input itself
// input     [..., I] or [..., 2 * I] out's dtype                  last dimension contiguous, rows
//                                                                 strided
// gate, up  [..., I]                 out's dtype                  likewise
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   Autograd through the backward ops (activation_backward.cpp)
//          graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' activations; op names and schemas of the Hub's `activation` kernel

#include "kernels/activation/activation_ops.h"

namespace graft_kernels::activation {

namespace {

Problem describe(const char* op, Function function, const Tensor& out) {
  Problem problem;
  problem.dtype = dtype_of(out);
  problem.function = function;
  problem.rows = count_rows(out);
  problem.columns = out.size(out.dim() - 1);
  problem.out = write_pointer(out);
  problem.out_rows = row_layout(op, {"out", out});
  return problem;
}

// One long row where nothing lies between the rows: fewer tails, no division.
void flatten(Problem& problem) {
  const auto dense = [&](const RowLayout& layout) {
    return is_dense(layout, problem.rows, problem.columns);
  };
  if (dense(problem.out_rows) && dense(problem.gate_rows) &&
      (problem.up == nullptr || dense(problem.up_rows))) {
    problem.columns *= problem.rows;
    problem.rows = 1;
  }
}

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const Problem&, const Tensor&) {}

}  // namespace

Problem check_unary(const char* op, Function function, const Tensor& out, const Tensor& input) {
  check_floating(op, {"input", input});
  check_same_shape(op, {"out", out}, {"input", input});
  check_dtype(op, {"out", out}, scalar_type_of(input), "that of input");
  check_same_device(op, {"out", out}, {"input", input});
  Problem problem;
  if (out.is_contiguous() && input.is_contiguous()) {
    problem.dtype = dtype_of(input);
    problem.function = function;
    problem.rows = 1;
    problem.columns = input.numel();
    problem.gate = read_pointer(input);
    problem.out = write_pointer(out);
    return problem;
  }
  check_rows(op, {"input", input});
  check_rows(op, {"out", out});
  problem = describe(op, function, out);
  problem.gate = read_pointer(input);
  problem.gate_rows = row_layout(op, {"input", input});
  flatten(problem);
  return problem;
}

void check_halved(const char* op, NamedTensor out, NamedTensor input) {
  check_has_rows(op, input);
  check_has_rows(op, out);
  const int64_t last = input.tensor.dim() - 1;
  bool halved = out.tensor.dim() == input.tensor.dim() &&
                2 * out.tensor.size(last) == input.tensor.size(last);
  for (int64_t dim = 0; halved && dim < last; ++dim) {
    halved = out.tensor.size(dim) == input.tensor.size(dim);
  }
  if (!halved) {
    fail(op, out.name,
         "shape " + shape_text(input.tensor) + " (that of " + input.name +
             ") with the last dimension halved",
         shape_text(out.tensor));
  }
}

Problem check_halves(const char* op, Function function, bool swapped, const Tensor& out,
                     const Tensor& input) {
  check_floating(op, {"input", input});
  check_halved(op, {"out", out}, {"input", input});
  check_rows(op, {"input", input});
  check_like(op, {"out", out}, {"input", input});
  Problem problem = describe(op, function, out);
  const int64_t offset_bytes = problem.columns * static_cast<int64_t>(input.element_size());
  const char* halves = static_cast<const char*>(read_pointer(input));
  problem.gate = swapped ? halves + offset_bytes : halves;
  problem.up = swapped ? halves : halves + offset_bytes;
  problem.gate_rows = row_layout(op, {"input", input});
  problem.up_rows = problem.gate_rows;
  return problem;
}

Problem check_gated(const char* op, Function function, const Tensor& out, const Tensor& gate,
                    const Tensor& up) {
  check_floating(op, {"gate", gate});
  check_has_rows(op, {"gate", gate});
  check_rows(op, {"gate", gate});
  for (const NamedTensor& value : {NamedTensor{"up", up}, NamedTensor{"out", out}}) {
    check_same_shape(op, value, {"gate", gate});
    check_like(op, value, {"gate", gate});
  }
  Problem problem = describe(op, function, out);
  problem.gate = read_pointer(gate);
  problem.up = read_pointer(up);
  problem.gate_rows = row_layout(op, {"gate", gate});
  problem.up_rows = row_layout(op, {"up", up});
  flatten(problem);
  return problem;
}

using MetaOps = Ops<&run_meta>;

}  // namespace graft_kernels::activation

GRAFT_OPS(ops) {
  for (const char* schema :
       {"silu(Tensor! out, Tensor input) -> ()", "gelu(Tensor! out, Tensor input) -> ()",
        "gelu_tanh(Tensor! out, Tensor input) -> ()", "gelu_new(Tensor! out, Tensor input) -> ()",
        "gelu_fast(Tensor! out, Tensor input) -> ()", "gelu_quick(Tensor! out, Tensor input) -> ()",
        "silu_and_mul(Tensor! out, Tensor input) -> ()",
        "mul_and_silu(Tensor! out, Tensor input) -> ()",
        "gelu_and_mul(Tensor! out, Tensor input) -> ()",
        "gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()",
        "silu_mul(Tensor! out, Tensor gate, Tensor up) -> ()",
        "gelu_mul(Tensor! out, Tensor gate, Tensor up) -> ()",
        "gelu_tanh_mul(Tensor! out, Tensor gate, Tensor up) -> ()"}) {
    ops.def(schema);
  }
  for (const char* name : {"silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "gelu_quick"}) {
    ops.def(
        (std::string(name) + "_backward(Tensor! grad_input, Tensor grad_out, Tensor input) -> ()")
            .c_str());
  }
  for (const char* name : {"silu_mul", "gelu_mul", "gelu_tanh_mul"}) {
    ops.def((std::string(name) +
             "_backward(Tensor! grad_gate, Tensor! grad_up, Tensor grad_out, Tensor gate, Tensor "
             "up) -> ()")
                .c_str());
  }
  ops.def("swigluoai_and_mul(Tensor! out, Tensor input, float alpha=1.702, float limit=7.0) -> ()");
  ops.def(
      "swigluoai_and_mul_backward(Tensor! grad_input, Tensor grad_out, Tensor input, float "
      "alpha=1.702, float limit=7.0) -> ()");
}

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::activation::MetaOps::implement(ops); }

// Gradients of the activations, alone and as the gate of a product, in float32 throughout:
//
//   *_backward      grad_input = grad_out * act'(input)
//   *_mul_backward  grad_gate = grad_out * up * act'(gate), grad_up = grad_out * act(gate)
// The forms that round each step in the forward have the derivative of the unrounded function.
//
// grad_input, grad_gate, grad_up, grad_out, input, gate, up   [..., I]   one dtype: float32, bfloat16,
// float16; last dimensions contiguous, rows strided. A gradient may be written over grad_out or over
// the tensor that it is the gradient of.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   graph-capturable yes, deterministic yes, thread-safe yes

#include "kernels/activation/activation_backward_ops.h"

namespace graft_kernels::activation {

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const BackwardProblem&, const Tensor&) {}

// One long row where nothing lies between the rows: fewer tails, no division.
void flatten(BackwardProblem& problem) {
  for (const RowLayout* rows : {&problem.grad_out_rows, &problem.gate_rows, &problem.up_rows,
                                &problem.grad_gate_rows, &problem.grad_up_rows}) {
    const bool absent =
        problem.up == nullptr && (rows == &problem.up_rows || rows == &problem.grad_up_rows);
    if (!absent && !is_dense(*rows, problem.rows, problem.columns)) {
      return;
    }
  }
  problem.columns *= problem.rows;
  problem.rows = 1;
}

}  // namespace

BackwardProblem check_backward(const char* op, Function function, NamedTensor grad_gate,
                               const Tensor* grad_up, const Tensor& grad_out, NamedTensor gate,
                               const Tensor* up) {
  check_floating(op, gate);
  check_has_rows(op, gate);
  check_rows(op, gate);
  const auto check = [&](NamedTensor value) {
    check_same_shape(op, value, gate);
    check_like(op, value, gate);
  };
  check(grad_gate);
  check({"grad_out", grad_out});
  BackwardProblem problem;
  problem.dtype = dtype_of(gate.tensor);
  problem.function = function;
  problem.rows = count_rows(gate.tensor);
  problem.columns = gate.tensor.size(gate.tensor.dim() - 1);
  problem.grad_out = read_pointer(grad_out);
  problem.grad_out_rows = row_layout(op, {"grad_out", grad_out});
  problem.gate = read_pointer(gate.tensor);
  problem.gate_rows = row_layout(op, gate);
  problem.grad_gate = write_pointer(grad_gate.tensor);
  problem.grad_gate_rows = row_layout(op, grad_gate);
  if (up != nullptr) {
    check({"up", *up});
    check({"grad_up", *grad_up});
    problem.up = read_pointer(*up);
    problem.up_rows = row_layout(op, {"up", *up});
    problem.grad_up = write_pointer(*grad_up);
    problem.grad_up_rows = row_layout(op, {"grad_up", *grad_up});
  }
  flatten(problem);
  return problem;
}

using MetaBackwardOps = BackwardOps<&run_meta>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::activation::MetaBackwardOps::implement(ops); }

// gpt-oss' clamped SwiGLU, whose gate and up lie side by side:
//
//   gate = min(input[..., ::2], limit)
//   up = clamp(input[..., 1::2], -limit, limit)
//   swigluoai_and_mul           out = (up + 1) * (gate * logistic(alpha * gate))
//   swigluoai_and_mul_backward  grad_input from grad_out, in float32 throughout; none where a clamp took effect, all of
//                               it at the limit itself (as PyTorch 2.11; 2.15 has none there)
// The forward rounds each step to the dtype, as the model does.
//
// out, grad_out       [..., I]       float32, bfloat16, float16   last dimension contiguous, rows strided
// input, grad_input   [..., 2 * I]   out's dtype                  likewise
// alpha, limit        1.702 and 7.0 in gpt-oss; limit at least 0
// out and grad_out overlap nothing else; grad_input may be input itself.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' GptOssExperts; name and arguments of the Hub's `moe` kernel for XPU and of vLLM

#include <string>

#include "kernels/activation/swigluoai_ops.h"

namespace graft_kernels::activation {

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const SwigluoaiProblem&, const Tensor&) {}

// One long row where nothing lies between the rows: fewer tails, no division.
void flatten(SwigluoaiProblem& problem, int64_t out_columns) {
  const int64_t rows = problem.rows, columns = problem.columns;
  if (is_dense(problem.input_rows, rows, 2 * columns) &&
      is_dense(problem.out_rows, rows, out_columns) &&
      (problem.grad_out == nullptr || is_dense(problem.grad_out_rows, rows, columns))) {
    problem.columns *= problem.rows;
    problem.rows = 1;
  }
}

SwigluoaiProblem describe(const char* op, NamedTensor halved, NamedTensor input, double alpha,
                          double limit) {
  check_floating(op, input);
  check_halved(op, halved, input);
  check_rows(op, input);
  check_like(op, halved, input);
  if (!(limit >= 0)) {
    fail(op, "limit", "a number of at least 0", std::to_string(limit));
  }
  SwigluoaiProblem problem;
  problem.dtype = dtype_of(input.tensor);
  problem.rows = count_rows(halved.tensor);
  problem.columns = halved.tensor.size(halved.tensor.dim() - 1);
  problem.alpha = static_cast<float>(alpha);
  problem.limit = static_cast<float>(limit);
  problem.input = read_pointer(input.tensor);
  problem.input_rows = row_layout(op, input);
  return problem;
}

}  // namespace

SwigluoaiProblem check_swigluoai(const Tensor& out, const Tensor& input, double alpha,
                                 double limit) {
  constexpr const char* kOp = "swigluoai_and_mul";
  SwigluoaiProblem problem = describe(kOp, {"out", out}, {"input", input}, alpha, limit);
  problem.out = write_pointer(out);
  problem.out_rows = row_layout(kOp, {"out", out});
  flatten(problem, problem.columns);
  return problem;
}

SwigluoaiProblem check_swigluoai_backward(const Tensor& grad_input, const Tensor& grad_out,
                                          const Tensor& input, double alpha, double limit) {
  constexpr const char* kOp = "swigluoai_and_mul_backward";
  SwigluoaiProblem problem = describe(kOp, {"grad_out", grad_out}, {"input", input}, alpha, limit);
  const NamedTensor gradient{"grad_input", grad_input};
  check_same_shape(kOp, gradient, {"input", input});
  check_like(kOp, gradient, {"input", input});
  problem.grad_out = read_pointer(grad_out);
  problem.grad_out_rows = row_layout(kOp, {"grad_out", grad_out});
  problem.out = write_pointer(grad_input);
  problem.out_rows = row_layout(kOp, gradient);
  flatten(problem, 2 * problem.columns);
  return problem;
}

using MetaSwigluoaiOps = SwigluoaiOps<&run_meta>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::activation::MetaSwigluoaiOps::implement(ops); }

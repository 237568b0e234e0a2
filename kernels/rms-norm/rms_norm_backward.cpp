// Gradients of RMSNorm with respect to its input and its weight, in float32 throughout:
//
//   inv = rsqrt(mean(x^2) + eps), g = grad_out * weight   (1 + weight in variant 3)
//   grad_x      = inv * (g - x * inv^2 * mean(g * x))     plus grad_sum in the add forms
//   grad_weight = sum over rows of grad_out * x * inv
//
// grad_x       [..., H]  x's dtype        may be grad_out or grad_sum itself where dtypes agree
// grad_weight  [H]       weight's dtype   contiguous
// grad_out     [..., H]  the output's dtype: weight's in variant 0, else x's
// grad_sum     [..., H]  x's dtype        gradient of the sum that add_rms_norm returns
// x, sum       [..., H]  float32, bfloat16, float16   what was normalized
// weight       [H]       x's dtype or float32
// Last dimensions are contiguous, rows strided. The gradient of x in the add forms is that of the
// residual too.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   graph-capturable yes, deterministic yes, thread-safe yes
// Source   Zhang and Sennrich 2019, section 4

#include "kernels/rms-norm/rms_norm_backward_ops.h"

namespace graft_kernels::rms_norm {

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(BackwardProblem&, const Tensor&) {}

}  // namespace

BackwardProblem check_backward(const char* op, const Tensor& grad_x, const Tensor& grad_weight,
                               const Tensor& grad_out, const Tensor* grad_sum, const Tensor& x,
                               const Tensor& weight, double eps, int64_t variant) {
  // The forward's checks hold for x, weight and variant; grad_out has the output's shape and dtype.
  const Problem forward =
      check_problem(op, {"grad_out", grad_out}, nullptr, x, nullptr, weight, eps, variant);
  BackwardProblem problem;
  problem.x_dtype = forward.x_dtype;
  problem.weight_dtype = forward.weight_dtype;
  problem.variant = forward.variant;
  problem.eps = forward.eps;
  problem.rows = forward.rows;
  problem.columns = forward.columns;
  problem.x = forward.x;
  problem.x_rows = forward.x_rows;
  problem.weight = forward.weight;
  problem.grad_out = forward.out;
  problem.grad_out_rows = forward.out_rows;
  const auto check_like_x = [&](NamedTensor value) {
    check_same_shape(op, value, {"x", x});
    check_dtype(op, value, scalar_type_of(x), "that of x");
    check_same_device(op, value, {"x", x});
    check_rows(op, value);
  };
  check_like_x({"grad_x", grad_x});
  problem.grad_x = write_pointer(grad_x);
  problem.grad_x_rows = row_layout(op, {"grad_x", grad_x});
  if (grad_sum != nullptr) {
    check_like_x({"grad_sum", *grad_sum});
    problem.grad_sum = read_pointer(*grad_sum);
    problem.grad_sum_rows = row_layout(op, {"grad_sum", *grad_sum});
  }
  check_same_shape(op, {"grad_weight", grad_weight}, {"weight", weight});
  check_dtype(op, {"grad_weight", grad_weight}, scalar_type_of(weight), "that of weight");
  check_same_device(op, {"grad_weight", grad_weight}, {"x", x});
  check_rows(op, {"grad_weight", grad_weight});
  problem.grad_weight = write_pointer(grad_weight);
  return problem;
}

using MetaBackwardOps = BackwardOps<&run_meta>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::rms_norm::MetaBackwardOps::implement(ops); }

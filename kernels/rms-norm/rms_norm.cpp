// Root-mean-square norm over the last dimension, with an optional residual addition in front.
//
//   norm(x) = float(x) * rsqrt(mean(float(x)^2) + eps), in one of four numeric variants
//   (rms_norm.h) add_*:  sum = x + residual, rounded to x's dtype; the norm is taken of the rounded
//   sum
//
// out       [..., H]  x's dtype; weight's dtype in variant 0   may be x itself
// sum_out   [..., H]  x's dtype                                may be x or residual itself
// x         [..., H]  float32, bfloat16, float16               last dimension contiguous, rows
// strided residual  [..., H]  x's dtype                                likewise weight    [H] x's
// dtype or float32                     contiguous Throws   std::runtime_error `[op] argument:
// expected …, got …` Devices  cpu, cuda sm_80+   Autograd through the backward ops
// (rms_norm_backward.cpp)
//          graph-capturable yes, deterministic yes, thread-safe yes
// Source   Zhang and Sennrich 2019, equation 4; transformers' LlamaRMSNorm, Olmo2RMSNorm,
//          GemmaRMSNorm

#include <utility>

#include "kernels/rms-norm/rms_norm_ops.h"

namespace graft_kernels::rms_norm {

namespace {

void check_weight(const char* op, const Tensor& x, const Tensor& weight) {
  const int64_t columns = x.size(x.dim() - 1);
  if (weight.dim() != 1 || weight.size(0) != columns) {
    fail(op, "weight", "shape [" + std::to_string(columns) + "] (last dimension of x)",
         shape_text(weight));
  }
  check_dtype_or_float32(op, {"weight", weight}, {"x", x});
  check_rows(op, {"weight", weight});
  check_same_device(op, {"weight", weight}, {"x", x});
}

void check_variant(const char* op, int64_t variant) {
  if (variant < 0 || variant >= kNumVariants) {
    fail(op, "variant", "0, 1, 2 or 3", std::to_string(variant));
  }
}

void check_rows_like_x(const char* op, NamedTensor value, const Tensor& x) {
  check_same_shape(op, value, {"x", x});
  check_same_device(op, value, {"x", x});
  check_rows(op, value);
}

ScalarType output_dtype(const Tensor& x, const Tensor& weight, int64_t variant) {
  return variant == static_cast<int64_t>(Variant::kCastBeforeWeight) ? scalar_type_of(weight)
                                                                     : scalar_type_of(x);
}

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const Problem&, const Tensor&) {}

}  // namespace

Problem check_problem(const char* op, NamedTensor out, const Tensor* sum, const Tensor& x,
                      const Tensor* residual, const Tensor& weight, double eps, int64_t variant) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  check_weight(op, x, weight);
  check_variant(op, variant);
  check_rows_like_x(op, out, x);
  check_dtype(op, out, output_dtype(x, weight, variant),
              variant == 0 ? "that of weight in variant 0" : "that of x");
  Problem problem;
  problem.x_dtype = dtype_of(x);
  problem.weight_dtype = dtype_of(weight);
  problem.variant = static_cast<Variant>(variant);
  problem.eps = static_cast<float>(eps);
  problem.rows = count_rows(x);
  problem.columns = x.size(x.dim() - 1);
  problem.x = read_pointer(x);
  problem.weight = read_pointer(weight);
  problem.out = write_pointer(out.tensor);
  problem.x_rows = row_layout(op, {"x", x});
  problem.out_rows = row_layout(op, out);
  if (residual != nullptr) {
    for (const NamedTensor& value :
         {NamedTensor{"residual", *residual}, NamedTensor{"sum_out", *sum}}) {
      check_rows_like_x(op, value, x);
      check_dtype(op, value, scalar_type_of(x), "that of x");
    }
    problem.residual = read_pointer(*residual);
    problem.residual_rows = row_layout(op, {"residual", *residual});
    problem.sum = write_pointer(*sum);
    problem.sum_rows = row_layout(op, {"sum_out", *sum});
  }
  return problem;
}

Tensor new_output(const Tensor& x, const Tensor& weight, int64_t variant) {
  return new_tensor(x, x.sizes(), output_dtype(x, weight, variant));
}

using MetaOps = Ops<&run_meta>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS(ops) {
  ops.def("rms_norm_out(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def(
      "add_rms_norm_out(Tensor! out, Tensor! sum_out, Tensor x, Tensor residual, Tensor weight, "
      "float eps, "
      "int variant) -> ()");
  ops.def("rms_norm(Tensor x, Tensor weight, float eps, int variant) -> Tensor");
  ops.def(
      "rms_norm_backward_out(Tensor! grad_x, Tensor! grad_weight, Tensor grad_out, Tensor x, "
      "Tensor weight, float eps, int variant) -> ()");
  ops.def(
      "add_rms_norm_backward_out(Tensor! grad_x, Tensor! grad_weight, Tensor grad_out, Tensor "
      "grad_sum, Tensor sum, Tensor weight, float eps, int variant) -> ()");
  ops.def(
      "rms_norm_backward(Tensor grad_out, Tensor x, Tensor weight, float eps, int variant) -> "
      "(Tensor, Tensor)");
  ops.def(
      "add_rms_norm_backward(Tensor grad_out, Tensor grad_sum, Tensor sum, Tensor weight, float "
      "eps, int variant) -> (Tensor, Tensor)");
  ops.def(
      "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, int variant) -> (Tensor, "
      "Tensor)");
  ops.def(
      "gated_rms_norm_out(Tensor! out, Tensor x, Tensor gate, Tensor weight, float eps, int "
      "variant, "
      "int act, bool gate_first) -> ()");
  ops.def(
      "gated_rms_norm(Tensor x, Tensor gate, Tensor weight, float eps, int variant, int act, bool "
      "gate_first) -> Tensor");
  ops.def(
      "gated_rms_norm_backward_out(Tensor! grad_x, Tensor! grad_gate, Tensor! grad_weight, Tensor "
      "grad_out, Tensor x, Tensor gate, Tensor weight, float eps, int variant, int act, bool "
      "gate_first) -> ()");
  ops.def(
      "gated_rms_norm_backward(Tensor grad_out, Tensor x, Tensor gate, Tensor weight, float eps, "
      "int "
      "variant, int act, bool gate_first) -> (Tensor, Tensor, Tensor)");
  ops.def("layer_norm_out(Tensor! out, Tensor x, Tensor? weight, Tensor? bias, float eps) -> ()");
  ops.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  ops.def(
      "layer_norm_backward_out(Tensor! grad_x, Tensor! grad_weight, Tensor! grad_bias, Tensor "
      "grad_out, Tensor x, Tensor? weight, float eps) -> ()");
  ops.def(
      "layer_norm_backward(Tensor grad_out, Tensor x, Tensor? weight, float eps) -> (Tensor, "
      "Tensor, "
      "Tensor)");
}

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::rms_norm::MetaOps::implement(ops); }

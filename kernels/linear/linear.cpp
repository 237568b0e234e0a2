// y = x weight^T + bias
//
// out     [..., M]  x's dtype                    last dimension contiguous
// x       [..., K]  float32, bfloat16, float16   last dimension contiguous, rows strided
// weight  [M, K]    x's dtype                    contiguous, read where it lies (a mapped file,
// say) bias    [M]       x's dtype                    may be absent Sums are kept in float32 and
// rounded once. Throws   std::runtime_error `[op] argument: expected …, got …` Devices  cpu
// Autograd no, deterministic yes (independent of threads), thread-safe yes Source
// torch.nn.functional.linear

#include <vector>

#include "kernels/linear/linear_ops.h"

namespace graft_kernels::linear {

namespace {

std::string sizes_text(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

std::vector<int64_t> output_sizes(const Tensor& x, const Tensor& weight) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weight.size(0);
  return sizes;
}

void check_weight(const char* op, const Tensor& x, const Tensor& weight) {
  const int64_t depth = x.size(x.dim() - 1);
  if (weight.dim() != 2 || weight.size(1) != depth) {
    fail(op, "weight", "shape [M, " + std::to_string(depth) + "] (last dimension of x)",
         shape_text(weight));
  }
  if (!weight.is_contiguous()) {
    fail(op, "weight", "contiguous rows", "strides");
  }
  check_dtype(op, {"weight", weight}, x.scalar_type(), "that of x");
  check_same_device(op, {"weight", weight}, {"x", x});
}

}  // namespace

void check_arguments(const char* op, const Tensor& out, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  check_weight(op, x, weight);
  if (bias) {
    if (bias->dim() != 1 || bias->size(0) != weight.size(0)) {
      fail(op, "bias", "shape [" + std::to_string(weight.size(0)) + "] (rows of weight)",
           shape_text(*bias));
    }
    check_rows(op, {"bias", *bias});
    check_dtype(op, {"bias", *bias}, x.scalar_type(), "that of x");
    check_same_device(op, {"bias", *bias}, {"x", x});
  }
  const auto expected = output_sizes(x, weight);
  const std::vector<int64_t> got(out.sizes().begin(), out.sizes().end());
  if (got != expected) {
    fail(op, "out", "shape " + sizes_text(expected), shape_text(out));
  }
  if (!out.is_contiguous()) {
    fail(op, "out", "contiguous memory", "strides");
  }
  check_dtype(op, {"out", out}, x.scalar_type(), "that of x");
  check_same_device(op, {"out", out}, {"x", x});
}

Tensor new_output(const Tensor& x, const Tensor& weight) {
  const auto sizes = output_sizes(x, weight);
  return torch::stable::new_empty(x, {sizes.data(), sizes.size()});
}

namespace {

void linear_out_meta(Tensor out, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  check_arguments("linear_out", out, x, weight, bias);
}

Tensor linear_meta(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_has_rows("linear", {"x", x});
  check_weight("linear", x, weight);
  Tensor out = new_output(x, weight);
  check_arguments("linear", out, x, weight, bias);
  return out;
}

}  // namespace

}  // namespace graft_kernels::linear

GRAFT_OPS(ops) {
  ops.def("linear_out(Tensor! out, Tensor x, Tensor weight, Tensor? bias) -> ()");
  ops.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}

GRAFT_OPS_IMPL(Meta, ops) {
  ops.impl("linear_out", TORCH_BOX(&graft_kernels::linear::linear_out_meta));
  ops.impl("linear", TORCH_BOX(&graft_kernels::linear::linear_meta));
}

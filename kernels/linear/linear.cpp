// y = x weight^T + bias, and the same with the rows of two or three weights one after the other.
//
// out     [..., M]  x's dtype                    contiguous; M adds up where weights are joined
// x       [..., K]  float32, bfloat16, float16   last dimension contiguous, rows strided
// weight  [M, K]    x's dtype                    contiguous, read where it lies (a mapped file, say)
// bias    [M]       x's dtype                    may be absent
// Sums are kept in float32 and rounded once. A joined product has the bits of the separate ones; few
// rows of x then cost one parallel region.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda
// Autograd no, deterministic yes (independent of threads), thread-safe yes
// Source   torch.nn.functional.linear

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

std::vector<int64_t> output_sizes(const Tensor& x, int64_t columns) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = columns;
  return sizes;
}

}  // namespace

void check_weight(const char* op, const char* name, const Tensor& x, const Tensor& weight) {
  const int64_t depth = x.size(x.dim() - 1);
  if (weight.dim() != 2 || weight.size(1) != depth) {
    fail(op, name, "shape [M, " + std::to_string(depth) + "] (last dimension of x)",
         shape_text(weight));
  }
  if (!weight.is_contiguous()) {
    fail(op, name, "contiguous rows", "strides");
  }
  check_dtype(op, {name, weight}, scalar_type_of(x), "that of x");
  check_same_device(op, {name, weight}, {"x", x});
}

void check_arguments(const char* op, const Tensor& out, const Tensor& x,
                     const std::vector<Part>& parts) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  int64_t columns = 0;
  for (const Part& part : parts) {
    check_weight(op, part.weight_name, x, part.weight);
    if (part.bias) {
      check_vector(op, {part.bias_name, *part.bias}, part.weight.size(0), "rows of its weight",
                   {"x", x});
    }
    columns += part.weight.size(0);
  }
  const auto expected = output_sizes(x, columns);
  const std::vector<int64_t> got(out.sizes().begin(), out.sizes().end());
  if (got != expected) {
    fail(op, "out", "shape " + sizes_text(expected), shape_text(out));
  }
  if (!out.is_contiguous()) {
    fail(op, "out", "contiguous memory", "strides");
  }
  check_dtype(op, {"out", out}, scalar_type_of(x), "that of x");
  check_same_device(op, {"out", out}, {"x", x});
}

std::vector<Part> join_parts(const Tensor& first, const Tensor& second,
                             const std::optional<Tensor>& third,
                             const std::optional<Tensor>& first_bias,
                             const std::optional<Tensor>& second_bias,
                             const std::optional<Tensor>& third_bias) {
  std::vector<Part> parts = {{first, first_bias, "first", "first_bias"},
                             {second, second_bias, "second", "second_bias"}};
  if (third) {
    parts.push_back({*third, third_bias, "third", "third_bias"});
  } else if (third_bias) {
    fail("linear_join_out", "third_bias", "none (there is no third weight)",
         shape_text(*third_bias));
  }
  return parts;
}

Tensor new_output(const Tensor& x, const Tensor& weight) {
  const auto sizes = output_sizes(x, weight.size(0));
  return new_tensor(x, {sizes.data(), sizes.size()});
}

namespace {

void linear_out_meta(Tensor out, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  check_arguments("linear_out", out, x, {{weight, bias}});
}

void linear_join_out_meta(Tensor out, const Tensor& x, const Tensor& first, const Tensor& second,
                          const std::optional<Tensor>& third,
                          const std::optional<Tensor>& first_bias,
                          const std::optional<Tensor>& second_bias,
                          const std::optional<Tensor>& third_bias) {
  check_arguments("linear_join_out", out, x,
                  join_parts(first, second, third, first_bias, second_bias, third_bias));
}

Tensor linear_meta(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_has_rows("linear", {"x", x});
  check_weight("linear", "weight", x, weight);
  Tensor out = new_output(x, weight);
  check_arguments("linear", out, x, {{weight, bias}});
  return out;
}

}  // namespace

}  // namespace graft_kernels::linear

GRAFT_OPS(ops) {
  ops.def("linear_out(Tensor! out, Tensor x, Tensor weight, Tensor? bias) -> ()");
  ops.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  ops.def(
      "linear_join_out(Tensor! out, Tensor x, Tensor first, Tensor second, Tensor? third, Tensor? "
      "first_bias, Tensor? second_bias, Tensor? third_bias) -> ()");
  ops.def(
      "linear_act_out(Tensor! out, Tensor x, Tensor weight, Tensor? bias, int act, Tensor? "
      "residual) -> ()");
  ops.def("linear_act(Tensor x, Tensor weight, Tensor? bias, int act, Tensor? residual) -> Tensor");
  ops.def("pack_weight(Tensor blocks, int type, int rows, int columns) -> Tensor");
  ops.def(
      "packed_linear_out(Tensor! out, Tensor x, Tensor packed, int type, int rows, Tensor? bias, "
      "bool round_x) -> ()");
  ops.def(
      "packed_linear_join_out(Tensor! out, Tensor x, Tensor first, Tensor second, Tensor? third, "
      "int "
      "first_type, int second_type, int third_type, int first_rows, int second_rows, int "
      "third_rows, "
      "Tensor? first_bias, Tensor? second_bias, Tensor? third_bias, bool round_x) -> ()");
  ops.def(
      "packed_linear(Tensor x, Tensor packed, int type, int rows, Tensor? bias, bool round_x) -> "
      "Tensor");
}

GRAFT_OPS_IMPL(Meta, ops) {
  ops.impl("linear_out", TORCH_BOX(&graft_kernels::linear::linear_out_meta));
  ops.impl("linear", TORCH_BOX(&graft_kernels::linear::linear_meta));
  ops.impl("linear_join_out", TORCH_BOX(&graft_kernels::linear::linear_join_out_meta));
}

// The norms forward and backward, beside ATen's fused ops and eager evaluation.

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::Harness;
using graft_kernels::testing::largest_error;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

constexpr double kEps = 1e-5;

at::Tensor eager(const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor x_float = x.to(at::kFloat);
  return weight * (x_float * at::rsqrt(x_float.pow(2).mean(-1, true) + kEps)).to(x.scalar_type());
}

// The weight's gradient of rms_norm, in float64, for `difference`.
at::Tensor exact_grad_weight(const at::Tensor& grad_out, const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + kEps);
  return (grad_out.to(at::kFloat) * norm).sum(0, false, at::kDouble);
}

std::string shape_text(int64_t rows, int64_t columns) {
  return std::to_string(rows) + "x" + std::to_string(columns);
}

void bench_shape(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, columns}, options);
  const at::Tensor residual = at::randn({rows, columns}, options);
  const at::Tensor weight = at::randn({columns}, options);
  at::Tensor out = at::empty_like(x);
  at::Tensor sum = at::empty_like(x);
  const int64_t row_bytes = columns * static_cast<int64_t>(x.element_size());
  const int64_t checked = std::min<int64_t>(rows, 64);
  const at::Tensor reference = eager(x.slice(0, 0, checked), weight);
  const auto difference = [&] {
    return largest_error(out.slice(0, 0, checked), reference.to(at::kDouble)) /
           std::max(1e-3, reference.abs().max().item<double>());
  };
  Row row;
  row.op = "rms_norm";
  row.variant = "cast_before_weight";
  row.dtype = c10::toString(dtype);
  row.shape = shape_text(rows, columns);
  row.bytes = (2 * rows + 1) * row_bytes;
  row.work = [&] { package("rms_norm_out", out, x, weight, kEps, int64_t{0}); };
  row.peers = {{"at::rms_norm", [&] { at::rms_norm(x, {columns}, weight, kEps); }},
               {"eager", [&] { eager(x, weight); }}};
  row.difference = [&] {
    row.work();
    return difference();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
  harness.run(row);

  row.op = "add_rms_norm";
  row.bytes = (4 * rows + 1) * row_bytes;
  row.work = [&] { package("add_rms_norm_out", out, sum, x, residual, weight, kEps, int64_t{0}); };
  row.peers = {{"add, at::rms_norm", [&] { at::rms_norm(residual + x, {columns}, weight, kEps); }}};
  row.difference = [&] {
    row.work();
    return largest_error(sum, (residual + x).to(at::kDouble));
  };
  row.tolerance = 0;
  harness.run(row);

  at::Tensor grad_weight = at::empty_like(weight);
  row.op = "rms_norm_backward";
  row.bytes = (3 * rows + 2) * row_bytes;
  row.work = [&] {
    package("rms_norm_backward_out", out, grad_weight, residual, x, weight, kEps, int64_t{0});
  };
  row.peers.clear();
  if (harness.device().is_cuda()) {
    const at::Tensor inverse = std::get<1>(at::_fused_rms_norm(x, {columns}, weight, kEps));
    row.peers = {
        {"at::_fused_rms_norm_backward", [=] {
           at::_fused_rms_norm_backward(residual, x, {columns}, inverse, weight, {true, true});
         }}};
  }
  row.difference = [&] {
    row.work();
    const at::Tensor exact = exact_grad_weight(residual, x);
    return largest_error(grad_weight, exact) / exact.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
  harness.run(row);
}

// As Qwen3NextRMSNormGated has it: over the heads of a linear attention.
at::Tensor eager_gated(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight) {
  return (eager(x, weight) * at::silu(gate.to(at::kFloat))).to(x.scalar_type());
}

void bench_gated(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, columns}, options),
                   gate = at::randn({rows, columns}, options),
                   grad = at::randn({rows, columns}, options),
                   weight = at::randn({columns}, options);
  at::Tensor out = at::empty_like(x), grad_gate = at::empty_like(x),
             grad_weight = at::empty_like(weight);
  const int64_t row_bytes = columns * static_cast<int64_t>(x.element_size());
  const int64_t checked = std::min<int64_t>(rows, 64);
  Row row;
  row.op = "gated_rms_norm";
  row.variant = "silu_after_norm";
  row.dtype = c10::toString(dtype);
  row.shape = shape_text(rows, columns);
  row.bytes = (3 * rows + 1) * row_bytes;
  row.work = [&] {
    package("gated_rms_norm_out", out, x, gate, weight, kEps, int64_t{0}, int64_t{0}, false);
  };
  row.peers = {{"eager", [&] { eager_gated(x, gate, weight); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor expected =
        eager_gated(x.slice(0, 0, checked), gate.slice(0, 0, checked), weight).to(at::kDouble);
    return largest_error(out.slice(0, 0, checked), expected) / expected.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
  harness.run(row);
  row.op = "gated_rms_norm_backward";
  row.bytes = (5 * rows + 2) * row_bytes;
  row.work = [&] {
    package("gated_rms_norm_backward_out", out, grad_gate, grad_weight, grad, x, gate, weight, kEps,
            int64_t{0}, int64_t{0}, false);
  };
  row.peers.clear();
  row.difference = [&] {
    row.work();
    const at::Tensor exact =
        exact_grad_weight((grad.to(at::kFloat) * at::silu(gate.to(at::kFloat))), x);
    return largest_error(grad_weight, exact) / exact.abs().max().item<double>();
  };
  harness.run(row);
}

void bench_layer(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, columns}, options),
                   grad = at::randn({rows, columns}, options),
                   weight = at::randn({columns}, options), bias = at::randn({columns}, options);
  at::Tensor out = at::empty_like(x), grad_weight = at::empty_like(weight),
             grad_bias = at::empty_like(bias);
  const int64_t row_bytes = columns * static_cast<int64_t>(x.element_size());
  const auto [expected, mean, inverse] = at::native_layer_norm(x, {columns}, weight, bias, kEps);
  const auto peers = [&, mean = mean, inverse = inverse] {
    return at::native_layer_norm_backward(grad, x, {columns}, mean, inverse, weight, bias,
                                          {true, true, true});
  };
  Row row;
  row.op = "layer_norm";
  row.variant = "weight_and_bias";
  row.dtype = c10::toString(dtype);
  row.shape = shape_text(rows, columns);
  row.bytes = (2 * rows + 2) * row_bytes;
  row.work = [&] { package("layer_norm_out", out, x, weight, bias, kEps); };
  row.peers = {{"at::layer_norm", [&] { at::layer_norm(x, {columns}, weight, bias, kEps); }}};
  row.difference = [&, expected = expected] {
    row.work();
    return largest_error(out, expected.to(at::kDouble)) / expected.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
  harness.run(row);
  row.op = "layer_norm_backward";
  row.bytes = (3 * rows + 3) * row_bytes;
  row.work = [&] {
    package("layer_norm_backward_out", out, grad_weight, grad_bias, grad, x, weight, kEps);
  };
  row.peers = {{"at::native_layer_norm_backward", [&] { peers(); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor theirs = std::get<1>(peers()).to(at::kDouble);
    return largest_error(grad_weight, theirs) / theirs.abs().max().item<double>();
  };
  harness.run(row);
}

// The heads of queries where they lie in a fused projection of queries, keys and values.
void bench_heads(Harness& harness, int64_t tokens, int64_t heads, int64_t width) {
  const Package& package = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(at::kBFloat16);
  const at::Tensor fused = at::randn({tokens, (heads + heads / 2) * width}, options);
  const at::Tensor x = fused.narrow(1, 0, heads * width).view({tokens, heads, width});
  const at::Tensor weight = at::randn({width}, options);
  at::Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
  Row row;
  row.op = "rms_norm";
  row.variant = "heads_of_a_fused_projection";
  row.dtype = "BFloat16";
  row.shape = std::to_string(tokens) + "x" + std::to_string(heads) + "x" + std::to_string(width);
  row.bytes = 4 * tokens * heads * width;
  row.work = [&] { package("rms_norm_out", out, x, weight, kEps, int64_t{0}); };
  row.peers = {{"at::rms_norm", [&] { at::rms_norm(x, {width}, weight, kEps); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor reference = eager(x.slice(0, 0, 64), weight);
    return largest_error(out.slice(0, 0, 64), reference.to(at::kDouble)) /
           reference.abs().max().item<double>();
  };
  row.tolerance = 1e-2;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    const bool is_cuda = harness.device().is_cuda();
    std::vector<std::pair<int64_t, int64_t>> shapes = {
        {1, 576}, {1, 4096}, {512, 576}, {2048, 4096}};
    if (is_cuda) {
      shapes = {{1, 4096},     {32, 4096},     {32768, 256},   {32768, 512},  {32768, 1024},
                {32768, 2048}, {8192, 4096},   {8192, 8192},   {8192, 16384}, {8192, 32768},
                {4096, 65536}, {2048, 131072}, {1024, 262144}, {8192, 5120},  {32768, 128}};
    }
    for (const auto& [rows, columns] : shapes) {
      bench_shape(harness, at::kBFloat16, rows, columns);
    }
    bench_shape(harness, at::kFloat, is_cuda ? 8192 : 512, is_cuda ? 4096 : 576);
    bench_shape(harness, at::kHalf, is_cuda ? 8192 : 512, is_cuda ? 4096 : 576);
    if (is_cuda) {
      bench_heads(harness, 27030, 24, 128);
      bench_gated(harness, at::kBFloat16, 8192 * 32, 128);
      bench_gated(harness, at::kBFloat16, 8192, 4096);
      bench_layer(harness, at::kBFloat16, 8192, 1024);
      bench_layer(harness, at::kBFloat16, 8192, 4096);
    } else {
      bench_heads(harness, 512, 9, 64);
      bench_gated(harness, at::kBFloat16, 512 * 16, 128);
      bench_layer(harness, at::kBFloat16, 512, 576);
      bench_layer(harness, at::kFloat, 512, 576);
    }
  });
}

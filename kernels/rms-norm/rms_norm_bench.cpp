// RMSNorm forward, alone and with the residual, beside ATen's fused op and eager evaluation.

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
  });
}

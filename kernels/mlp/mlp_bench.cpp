// The gated MLP beside ATen's products with separate activation.

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::Harness;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

constexpr int64_t kSilu = 0;

void bench(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t hidden, int64_t inner) {
  const Package& package = Package::for_device("mlp", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, hidden}, options);
  const at::Tensor gate = at::randn({inner, hidden}, options) / 64;
  const at::Tensor up = at::randn({inner, hidden}, options) / 64;
  const at::Tensor down = at::randn({hidden, inner}, options) / 128;
  const at::Tensor out = at::empty_like(x);
  const auto eager = [&] {
    return at::linear(at::silu(at::linear(x, gate)) * at::linear(x, up), down);
  };
  Row row;
  row.op = "mlp";
  row.variant = "silu";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(hidden) + "x" + std::to_string(inner);
  row.bytes = (2 * x.numel() + 3 * gate.numel()) * static_cast<int64_t>(x.element_size());
  row.flops = 6.0 * static_cast<double>(rows) * static_cast<double>(gate.numel());
  row.work = [&] {
    package("mlp_out", out, x, gate, up, down, kSilu, c10::IValue(), c10::IValue(), c10::IValue());
  };
  row.peers = {{"eager", [&] { eager(); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor expected = eager();
    return (out - expected).abs().max().item<double>() / expected.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 0x1p-6;
  harness.run(row);
}

// Forward and backward as a training step has them; ours keeps x alone and makes gate and up again, or keeps them.
void bench_training(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t hidden,
                    int64_t inner, bool keeps) {
  const Package& package = Package::for_device("mlp", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, hidden}, options),
                   grad = at::randn({rows, hidden}, options);
  const at::Tensor gate = at::randn({inner, hidden}, options) / 64;
  const at::Tensor up = at::randn({inner, hidden}, options) / 64;
  const at::Tensor down = at::randn({hidden, inner}, options) / 128;
  const at::Tensor out = at::empty_like(x);
  at::Tensor grad_x;
  // Separate steps that keep gate, up and what became of them, as autograd does.
  const auto eager = [&] {
    const at::Tensor a = at::linear(x, gate), b = at::linear(x, up), s = at::silu(a), h = s * b;
    const at::Tensor y = at::linear(h, down), grad_h = at::mm(grad, down);
    const at::Tensor grad_b = grad_h * s, grad_a = at::silu_backward(grad_h * b, a);
    const at::Tensor of_down = at::mm(grad.t(), h), of_gate = at::mm(grad_a.t(), x),
                     of_up = at::mm(grad_b.t(), x);
    return at::mm(grad_a, gate) + at::mm(grad_b, up);
  };
  Row row;
  row.op = keeps ? "mlp_train, mlp_train_backward" : "mlp, mlp_backward";
  row.variant = "silu";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(hidden) + "x" + std::to_string(inner);
  row.bytes = (5 * x.numel() + 9 * gate.numel()) * static_cast<int64_t>(x.element_size());
  row.flops = (keeps ? 18.0 : 22.0) * static_cast<double>(rows) * static_cast<double>(gate.numel());
  row.work = [&] {
    if (keeps) {
      const auto kept = package("mlp_train", x, gate, up, down, kSilu, c10::IValue(), c10::IValue(),
                                c10::IValue());
      grad_x = package("mlp_train_backward", grad, x, kept.at(1), kept.at(2), gate, up, down, kSilu,
                       c10::IValue(), c10::IValue(), c10::IValue(), true)
                   .at(0)
                   .toTensor();
      return;
    }
    package("mlp_out", out, x, gate, up, down, kSilu, c10::IValue(), c10::IValue(), c10::IValue());
    grad_x = package("mlp_backward", grad, x, gate, up, down, kSilu, c10::IValue(), c10::IValue(),
                     c10::IValue(), true)
                 .at(0)
                 .toTensor();
  };
  row.peers = {{"eager", [&] { eager(); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor expected = eager();
    return (grad_x - expected).abs().max().item<double>() / expected.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 0x1p-5;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    if (harness.device().is_cuda()) {
      for (const int64_t rows : {1, 4, 16, 512, 8192}) {
        bench(harness, at::kBFloat16, rows, 2048, 8192);
        bench(harness, at::kBFloat16, rows, 4096, 14336);
      }
      for (const bool keeps : {false, true}) {
        bench_training(harness, at::kBFloat16, 8192, 2048, 8192, keeps);
      }
    } else {
      bench(harness, at::kBFloat16, 1, 576, 1536);
      bench(harness, at::kFloat, 1, 576, 1536);
      for (const bool keeps : {false, true}) {
        bench_training(harness, at::kFloat, 256, 576, 1536, keeps);
      }
    }
  });
}

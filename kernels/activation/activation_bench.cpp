// Activations alone and as the gate of a product, beside eager ATen.

#include <cmath>

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::count_different;
using graft_kernels::testing::Harness;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;
using graft_kernels::testing::Work;
namespace testing = graft_kernels::testing;

using Function = std::function<at::Tensor(const at::Tensor&)>;

const std::vector<std::pair<std::string, Function>>& functions() {
  static const std::vector<std::pair<std::string, Function>> all = {
      {"silu", [](const at::Tensor& x) { return at::silu(x); }},
      {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
      {"gelu_tanh", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
      {"gelu_new",
       [](const at::Tensor& x) {
         return 0.5 * x *
                (1.0 + at::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * at::pow(x, 3.0))));
       }},
      {"gelu_fast",
       [](const at::Tensor& x) {
         return 0.5 * x * (1.0 + at::tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)));
       }},
      {"gelu_quick", [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); }},
  };
  return all;
}

// Share of elements that differ from eager; in float32 the last bits may.
std::function<double()> share_different(const Work& work, const at::Tensor& out,
                                        const Function& reference, const at::Tensor& x) {
  return [work, out, reference, x] {
    work();
    const at::Tensor expected = reference(x);
    if (out.scalar_type() == at::kFloat) {
      return at::allclose(out, expected, 1e-4, 1e-5) ? 0.0 : 1.0;
    }
    return static_cast<double>(count_different(out, expected)) / static_cast<double>(out.numel());
  };
}

void bench_unary(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("activation", harness.device());
  const at::Tensor x = at::randn({rows, columns}, at::TensorOptions(harness.device()).dtype(dtype));
  const at::Tensor out = at::empty_like(x);
  for (const auto& [name, function] : functions()) {
    Row row;
    row.op = name;
    row.dtype = c10::toString(dtype);
    row.shape = std::to_string(rows) + "x" + std::to_string(columns);
    row.bytes = 2 * x.numel() * static_cast<int64_t>(x.element_size());
    const std::string op = name;
    row.work = [&package, op, out, x] { package(op, out, x); };
    const Function reference = function;
    row.peers = {{"eager", [reference, x] { reference(x); }}};
    row.difference = share_different(row.work, out, function, x);
    row.tolerance = 1e-2;
    harness.run(row);
  }
}

void bench_gated(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("activation", harness.device());
  const at::Tensor fused =
      at::randn({rows, 2 * columns}, at::TensorOptions(harness.device()).dtype(dtype));
  const at::Tensor gate = fused.slice(-1, 0, columns);
  const at::Tensor up = fused.slice(-1, columns);
  const at::Tensor out = at::empty({rows, columns}, fused.options());
  const Function eager = [gate, up](const at::Tensor&) { return at::silu(gate) * up; };
  Row row;
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns);
  row.bytes = 3 * out.numel() * static_cast<int64_t>(out.element_size());
  row.peers = {{"eager", [eager, fused] { eager(fused); }}};
  row.tolerance = 1e-2;
  row.op = "silu_and_mul";
  row.variant = "halves of one tensor";
  row.work = [&package, out, fused] { package("silu_and_mul", out, fused); };
  row.difference = share_different(row.work, out, eager, fused);
  harness.run(row);
  row.op = "silu_mul";
  row.variant = "two strided inputs";
  row.work = [&package, out, gate, up] { package("silu_mul", out, gate, up); };
  row.difference = share_different(row.work, out, eager, fused);
  harness.run(row);
}

// gpt-oss' activation and its gradient, beside the model's own steps.
void bench_swigluoai(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("activation", harness.device());
  const at::Tensor pairs =
      at::randn({rows, 2 * columns}, at::TensorOptions(harness.device()).dtype(dtype));
  const at::Tensor out = at::empty({rows, columns}, pairs.options());
  const Function eager = [](const at::Tensor& x) {
    const at::Tensor gate = x.slice(-1, 0, c10::nullopt, 2).clamp_max(7.0);
    const at::Tensor up = x.slice(-1, 1, c10::nullopt, 2).clamp(-7.0, 7.0);
    return (up + 1) * (gate * at::sigmoid(gate * 1.702));
  };
  Row row;
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns);
  row.bytes = 3 * out.numel() * static_cast<int64_t>(out.element_size());
  row.op = "swigluoai_and_mul";
  row.work = [&package, out, pairs] { package("swigluoai_and_mul", out, pairs, 1.702, 7.0); };
  row.peers = {{"eager", [eager, pairs] { eager(pairs); }}};
  row.difference = share_different(row.work, out, eager, pairs);
  row.tolerance = 1e-2;
  harness.run(row);

  const at::Tensor grad = at::empty_like(pairs), grad_out = at::randn_like(out);
  const at::Tensor leaf = pairs.detach().clone().set_requires_grad(true);
  row.op = "swigluoai_and_mul_backward";
  row.bytes = 5 * out.numel() * static_cast<int64_t>(out.element_size());
  row.work = [&package, grad, grad_out, pairs] {
    package("swigluoai_and_mul_backward", grad, grad_out, pairs, 1.702, 7.0);
  };
  row.peers = {};
  row.difference = [&] {
    const at::AutoGradMode on(true);
    eager(leaf).backward(grad_out);
    row.work();
    return testing::largest_error(grad, leaf.grad().to(at::kDouble)) /
           grad.abs().max().item<double>();
  };
  harness.run(row);
}

// Gradients of silu, and of silu as a gate, beside ATen's own kernels.
void bench_backward(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("activation", harness.device());
  const auto options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor gate = at::randn({rows, columns}, options), up = at::randn_like(gate);
  const at::Tensor grad_out = at::randn_like(gate);
  const at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(gate);
  const int64_t tensor_bytes = gate.numel() * static_cast<int64_t>(gate.element_size());
  Row row;
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns);
  row.op = "silu_backward";
  row.bytes = 3 * tensor_bytes;
  row.work = [&package, grad_gate, grad_out, gate] {
    package("silu_backward", grad_gate, grad_out, gate);
  };
  row.peers = {{"at::silu_backward", [grad_out, gate] { at::silu_backward(grad_out, gate); }}};
  row.difference = [&] {
    row.work();
    return testing::largest_error(grad_gate, at::silu_backward(grad_out, gate).to(at::kDouble)) /
           grad_gate.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-6 : 1e-2;
  harness.run(row);

  row.op = "silu_mul_backward";
  row.bytes = 5 * tensor_bytes;
  row.work = [&package, grad_gate, grad_up, grad_out, gate, up] {
    package("silu_mul_backward", grad_gate, grad_up, grad_out, gate, up);
  };
  row.peers = {{"eager", [grad_out, gate, up] {
                  at::silu_backward(grad_out * up, gate);
                  grad_out* at::silu(gate);
                }}};
  row.difference = [&] {
    row.work();
    const at::Tensor reference = (grad_out * at::silu(gate)).to(at::kDouble);
    return testing::largest_error(grad_up, reference) / reference.abs().max().item<double>();
  };
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    if (harness.device().is_cuda()) {
      bench_unary(harness, at::kBFloat16, 8192, 14336);
      bench_unary(harness, at::kHalf, 8192, 14336);
      bench_unary(harness, at::kFloat, 8192, 7168);
      for (const int64_t rows : {1, 32, 8192}) {
        bench_gated(harness, at::kBFloat16, rows, 14336);
      }
      bench_gated(harness, at::kHalf, 8192, 14336);
      for (const int64_t rows : {1, 32, 8192}) {
        bench_swigluoai(harness, at::kBFloat16, rows, 2880);
      }
      bench_backward(harness, at::kBFloat16, 8192, 14336);
      bench_backward(harness, at::kFloat, 8192, 7168);
    } else {
      bench_unary(harness, at::kBFloat16, 512, 1536);
      bench_unary(harness, at::kFloat, 512, 1536);
      for (const int64_t rows : {1, 512}) {
        bench_gated(harness, at::kBFloat16, rows, 1536);
        bench_gated(harness, at::kFloat, rows, 1536);
      }
      bench_backward(harness, at::kBFloat16, 512, 1536);
      bench_swigluoai(harness, at::kBFloat16, 512, 2880);
      bench_swigluoai(harness, at::kFloat, 512, 2880);
    }
  });
}

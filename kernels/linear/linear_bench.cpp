// The linear layer for few rows, with plain and with packed weights, beside ATen's product of plain ones; with an
// activation or a residual for few and many rows, beside ATen's steps.

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::Harness;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

void bench(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns, int64_t depth) {
  const Package& package = Package::for_device("linear", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, depth}, options);
  const at::Tensor weight = at::randn({columns, depth}, options);
  const at::Tensor out = at::empty({rows, columns}, options);
  Row row;
  row.op = "linear";
  row.variant = "few rows";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns) + "x" + std::to_string(depth);
  row.bytes = (x.numel() + weight.numel() + out.numel()) * static_cast<int64_t>(x.element_size());
  row.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(weight.numel());
  row.work = [&] { package("linear_out", out, x, weight, c10::IValue()); };
  row.peers = {{"at::linear", [&] { at::linear(x, weight); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor exact = at::linear(x.to(at::kFloat), weight.to(at::kFloat));
    return (out - exact).abs().max().item<double>() / exact.abs().max().item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 0x1p-8;
  harness.run(row);
}

// gelu of a product with bias (`residual` false), or a product added to a residual.
void bench_act(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns, int64_t depth,
               bool residual) {
  constexpr int64_t kNone = 0, kGeluTanh = 3;
  const Package& package = Package::for_device("linear", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor x = at::randn({rows, depth}, options);
  const at::Tensor weight = at::randn({columns, depth}, options) / 64;
  const at::Tensor bias = at::randn({columns}, options);
  const at::Tensor stream = at::randn({rows, columns}, options);
  const at::Tensor out = at::empty({rows, columns}, options);
  const auto eager = [&](const at::Tensor& from, const at::Tensor& by, const at::Tensor& added) {
    return residual ? at::linear(from, by) + added : at::gelu(at::linear(from, by, added), "tanh");
  };
  Row row;
  row.op = "linear_act";
  row.variant = residual ? "residual" : "bias, gelu_tanh";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns) + "x" + std::to_string(depth);
  row.bytes = (x.numel() + weight.numel() + out.numel() * (residual ? 2 : 1)) *
              static_cast<int64_t>(x.element_size());
  row.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(weight.numel());
  row.work = [&] {
    package("linear_act_out", out, x, weight, residual ? c10::IValue() : c10::IValue(bias),
            residual ? kNone : kGeluTanh, residual ? c10::IValue(stream) : c10::IValue());
  };
  row.peers = {{"eager", [&] { eager(x, weight, residual ? stream : bias); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor exact =
        eager(x.to(at::kFloat), weight.to(at::kFloat), (residual ? stream : bias).to(at::kFloat));
    return (out - exact).abs().max().item<double>() / exact.abs().max().item<double>();
  };
  // The sum is rounded, and what becomes of it.
  row.tolerance = dtype == at::kFloat ? 1e-5 : 0x1p-7;
  harness.run(row);
}

struct PackedType {
  const char* name;
  int64_t number, block_columns, block_bytes, numbers_bytes;  // float16 scales and offsets at first
};
constexpr PackedType kQ40 = {"Q4_0", 2, 32, 18, 2}, kQ41 = {"Q4_1", 3, 32, 20, 4},
                     kQ80 = {"Q8_0", 8, 32, 34, 2}, kQ4K = {"Q4_K", 12, 256, 144, 4};

void bench_packed(Harness& harness, const PackedType& type, int64_t rows, int64_t columns,
                  int64_t depth) {
  const Package& package = Package::for_device("linear", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(at::kBFloat16);
  at::Tensor blocks =
      at::randint(256, {columns * depth / type.block_columns, type.block_bytes}, at::kByte);
  for (int64_t byte = 0; byte < type.numbers_bytes; byte += 2) {
    blocks.select(1, byte).fill_(0);
    blocks.select(1, byte + 1).fill_(0x24);  // 2^-6 in float16
  }
  const at::Tensor packed =
      package("pack_weight", blocks.flatten(), type.number, columns, depth)[0].toTensor().to(
          harness.device());
  const at::Tensor x = at::randn({rows, depth}, options);
  const at::Tensor plain = at::randn({columns, depth}, options);
  const at::Tensor out = at::empty({rows, columns}, options);
  Row row;
  row.op = "packed_linear";
  row.variant = type.name;
  row.dtype = c10::toString(at::kBFloat16);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns) + "x" + std::to_string(depth);
  row.bytes = packed.numel() + (x.numel() + out.numel()) * static_cast<int64_t>(x.element_size());
  row.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(plain.numel());
  row.work = [&] {
    package("packed_linear_out", out, x, packed, type.number, columns, c10::IValue(), true);
  };
  row.peers = {{"at::linear of bfloat16", [&] { at::linear(x, plain); }}};
  row.difference = [&] {
    row.work();
    const at::Tensor exact = package("packed_linear", x.to(at::kFloat), packed, type.number,
                                     columns, c10::IValue(), false)[0]
                                 .toTensor();
    return (out - exact).abs().max().item<double>() / exact.abs().max().item<double>();
  };
  row.tolerance = 0.02;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    if (harness.device().is_cuda()) {
      // Llama-3.2-1B: query-key-value, out, gate and up, down, head; then Llama-3.1-8B's down.
      for (const int64_t rows : {1, 4, 16}) {
        bench(harness, at::kBFloat16, rows, 3072, 2048);
        bench(harness, at::kBFloat16, rows, 2048, 2048);
        bench(harness, at::kBFloat16, rows, 16384, 2048);
        bench(harness, at::kBFloat16, rows, 2048, 8192);
        bench(harness, at::kBFloat16, rows, 128256, 2048);
        bench(harness, at::kBFloat16, rows, 4096, 14336);
      }
      bench(harness, at::kHalf, 1, 16384, 2048);
      for (const int64_t rows : {1, 16, 512, 8192}) {
        bench_act(harness, at::kBFloat16, rows, 8192, 2048, false);
        bench_act(harness, at::kBFloat16, rows, 2048, 8192, true);
        bench_act(harness, at::kBFloat16, rows, 14336, 4096, false);
        bench_act(harness, at::kBFloat16, rows, 4096, 14336, true);
      }
      for (const PackedType& type : {kQ40, kQ41, kQ80, kQ4K}) {
        bench_packed(harness, type, 1, 16384, 2048);
        bench_packed(harness, type, 1, 4096, 14336);
        bench_packed(harness, type, 1, 128256, 4096);
      }
      bench_packed(harness, kQ40, 4, 16384, 2048);
      bench_packed(harness, kQ40, 16, 16384, 2048);
    } else {
      bench(harness, at::kBFloat16, 1, 1536, 576);
      bench(harness, at::kFloat, 1, 1536, 576);
      bench(harness, at::kBFloat16, 1, 49152, 576);
      for (const int64_t rows : {1, 512}) {
        bench_act(harness, at::kFloat, rows, 1536, 576, false);
        bench_act(harness, at::kBFloat16, rows, 1536, 576, false);
        bench_act(harness, at::kBFloat16, rows, 576, 1536, true);
      }
      bench_packed(harness, kQ41, 1, 49152, 576);
      bench_packed(harness, kQ80, 1, 49152, 576);
    }
  });
}

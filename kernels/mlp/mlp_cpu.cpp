// The gated MLP on the CPU. Few rows: our own dot products, bound by reading the weights once. Many
// rows: ATen's products on blocks of rows, so that gate and up never exist for all of them; in float32
// where the processor does not multiply the dtype.

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/common/aten.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/mlp/mlp_ops.h"

namespace graft_kernels::mlp {

namespace {

// Bytes of weight below which a second thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 17;
// Elements of gate below which a second thread does.
constexpr int64_t kGrainElements = 1 << 14;
// Rows of x whose gate and up exist at a time.
constexpr int64_t kBlockRows = 512;

const void* pointer_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// Spreads columns over threads by the bytes of weight that each of them reads.
void run_columns(const Problem& problem, int64_t column_bytes, ColumnsFunction run) {
  const int64_t grain = kGrainBytes / std::max<int64_t>(column_bytes, 1) + 8;
  spread(problem.columns, grain, [&](int64_t begin, int64_t end) { run(problem, begin, end); });
}

void run_few_rows(Tensor& out, const Arguments& arguments, Function function, int64_t rows) {
  const int64_t hidden = arguments.down_weight.size(0), inner = arguments.gate_weight.size(0);
  std::unique_ptr<float[]> wide(new float[static_cast<size_t>(rows * hidden)]);
  std::unique_ptr<float[]> halves(new float[static_cast<size_t>(2 * rows * inner)]);
  Problem problem;
  problem.dtype = dtype_of(arguments.x);
  problem.function = function;
  problem.rows = rows;
  choose_isa<WidenFunction>(plain::mlp_widen, avx2::mlp_widen, avx512::mlp_widen)(
      problem.dtype, arguments.x.const_data_ptr(), wide.get(), rows * hidden);
  problem.depth = hidden;
  problem.columns = inner;
  problem.x = wide.get();
  problem.weight = arguments.gate_weight.const_data_ptr();
  problem.up_weight = arguments.up_weight.const_data_ptr();
  problem.bias = pointer_of(arguments.gate_bias);
  problem.up_bias = pointer_of(arguments.up_bias);
  problem.gate = halves.get();
  problem.up = halves.get() + rows * inner;
  run_columns(
      problem, 2 * hidden * bytes_of(problem.dtype),
      choose_isa<ColumnsFunction>(plain::mlp_gate_up, avx2::mlp_gate_up, avx512::mlp_gate_up));
  problem.depth = inner;
  problem.columns = hidden;
  problem.x = halves.get();
  problem.weight = arguments.down_weight.const_data_ptr();
  problem.bias = pointer_of(arguments.down_bias);
  problem.out = out.mutable_data_ptr();
  run_columns(problem, inner * bytes_of(problem.dtype),
              choose_isa<ColumnsFunction>(plain::mlp_down, avx2::mlp_down, avx512::mlp_down));
}

Tensor widened(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }
std::optional<Tensor> widened(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(widened(*tensor)) : std::nullopt;
}
void activate_all(Function function, Tensor& gate, const Tensor& up) {
  const auto run =
      choose_isa<ActivateFunction>(plain::mlp_activate, avx2::mlp_activate, avx512::mlp_activate);
  const Dtype dtype = dtype_of(gate);
  const int64_t element_bytes = bytes_of(dtype);
  auto* gates = static_cast<char*>(gate.mutable_data_ptr());
  const auto* ups = static_cast<const char*>(up.const_data_ptr());
  spread(gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    run(dtype, function, gates + begin * element_bytes, ups + begin * element_bytes, end - begin);
  });
}

// out = x weight^T + bias, all of one dtype.
void product_into(Tensor& out, const Tensor& x, const Tensor& weight,
                  const std::optional<Tensor>& bias) {
  if (bias) {
    torch::stable::copy_(out, aten_linear(x, weight, bias));
  } else {
    aten_product(out, x, transposed(weight));
  }
}

// Where ATen multiplies the dtype as fast as it can be: no copy of a weight is made.
void run_direct(Tensor& outs, Tensor& all, const Arguments& arguments, Function function) {
  const int64_t rows = all.size(0), inner = arguments.gate_weight.size(0);
  const std::vector<int64_t> sizes = {std::min(kBlockRows, rows), inner};
  Tensor gates = new_tensor(all, sizes), ups = new_tensor(all, sizes);
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows - begin);
    const Tensor x = torch::stable::narrow(all, 0, begin, count);
    Tensor gate = torch::stable::narrow(gates, 0, 0, count);
    Tensor up = torch::stable::narrow(ups, 0, 0, count);
    product_into(gate, x, arguments.gate_weight, arguments.gate_bias);
    product_into(up, x, arguments.up_weight, arguments.up_bias);
    activate_all(function, gate, up);
    Tensor target = torch::stable::narrow(outs, 0, begin, count);
    product_into(target, gate, arguments.down_weight, arguments.down_bias);
  }
}

// Elsewhere the products are float32, of weights that are widened once for all rows.
void run_widened(Tensor& outs, Tensor& all, const Arguments& arguments, Function function) {
  const ScalarType dtype = scalar_type_of(all);
  const Tensor gate_weight = widened(arguments.gate_weight);
  const Tensor up_weight = widened(arguments.up_weight);
  const Tensor down_weight = widened(arguments.down_weight);
  const auto gate_bias = widened(arguments.gate_bias), up_bias = widened(arguments.up_bias);
  const auto down_bias = widened(arguments.down_bias);
  for (int64_t begin = 0; begin < all.size(0); begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, all.size(0) - begin);
    const Tensor x = widened(torch::stable::narrow(all, 0, begin, count));
    Tensor gate = torch::stable::to(aten_linear(x, gate_weight, gate_bias), dtype);
    const Tensor up = torch::stable::to(aten_linear(x, up_weight, up_bias), dtype);
    activate_all(function, gate, up);
    Tensor target = torch::stable::narrow(outs, 0, begin, count);
    torch::stable::copy_(target, aten_linear(widened(gate), down_weight, down_bias));
  }
}

void run_many_rows(Tensor& out, const Arguments& arguments, Function function, int64_t rows) {
  const ScalarType dtype = scalar_type_of(arguments.x);
  const int64_t hidden = arguments.down_weight.size(0);
  Tensor all = torch::stable::view(arguments.x, {rows, hidden});
  Tensor outs = torch::stable::view(out, {rows, hidden});
  const bool direct =
      dtype == ScalarType::Float || (dtype == ScalarType::BFloat16 && multiplies_bf16());
  direct ? run_direct(outs, all, arguments, function) : run_widened(outs, all, arguments, function);
}

void run_cpu(Tensor& out, const Arguments& arguments, Function function) {
  if (out.numel() == 0) {
    return;
  }
  const int64_t rows = count_rows(arguments.x);
  rows <= kMaxVectorRows ? run_few_rows(out, arguments, function, rows)
                         : run_many_rows(out, arguments, function, rows);
}

}  // namespace

using CpuOps = Ops<&run_cpu>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::mlp::CpuOps::implement(ops); }

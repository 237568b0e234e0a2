// The gated MLP on the CPU. Few rows: our own dot products, bound by reading the weights once. Many
// rows: ATen's float32 products on blocks of rows, so that gate and up never exist for all of them.

#include <algorithm>
#include <memory>

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
// The value after a round trip through the dtype.
Tensor rounded(const Tensor& tensor, ScalarType dtype) {
  return dtype == ScalarType::Float ? tensor : widened(torch::stable::to(tensor, dtype));
}

void activate_all(Dtype dtype, Function function, Tensor& gate, const Tensor& up) {
  const auto run =
      choose_isa<ActivateFunction>(plain::mlp_activate, avx2::mlp_activate, avx512::mlp_activate);
  float* gates = static_cast<float*>(gate.mutable_data_ptr());
  const float* ups = static_cast<const float*>(up.const_data_ptr());
  torch::stable::parallel_for(0, gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    run(dtype, function, gates + begin, ups + begin, end - begin);
  });
}

void run_many_rows(Tensor& out, const Arguments& arguments, Function function, int64_t rows) {
  const ScalarType dtype = arguments.x.scalar_type();
  const int64_t hidden = arguments.down_weight.size(0);
  const Tensor gate_weight = widened(arguments.gate_weight);
  const Tensor up_weight = widened(arguments.up_weight);
  const Tensor down_weight = widened(arguments.down_weight);
  const auto gate_bias = widened(arguments.gate_bias), up_bias = widened(arguments.up_bias);
  const auto down_bias = widened(arguments.down_bias);
  Tensor all = torch::stable::reshape(arguments.x, {rows, hidden});
  Tensor outs = torch::stable::view(out, {rows, hidden});
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows - begin);
    const Tensor x = widened(torch::stable::narrow(all, 0, begin, count));
    Tensor gate = rounded(aten_linear(x, gate_weight, gate_bias), dtype);
    const Tensor up = rounded(aten_linear(x, up_weight, up_bias), dtype);
    activate_all(dtype_of(arguments.x), function, gate, up);
    Tensor target = torch::stable::narrow(outs, 0, begin, count);
    torch::stable::copy_(target, aten_linear(gate, down_weight, down_bias));
  }
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

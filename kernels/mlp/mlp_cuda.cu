// The gated MLP on CUDA. Few rows of a 16-bit dtype: our own products, bound by reading the weights once,
// in two launches. Many rows of it on Hopper: gate and up as one product of tiles that activates them. All else:
// ATen's products with our activation between them.

#include "kernels/common/aten.h"
#include "kernels/common/few_rows_launch.h"
#include "kernels/mlp/mlp_cuda.h"

namespace graft_kernels::mlp {

namespace {

bool takes_few_rows(const Arguments& arguments, int64_t rows) {
  const Tensor& x = arguments.x;
  return few_rows::takes_input(x, rows, x.size(x.dim() - 1)) &&
         arguments.down_weight.size(1) % 8 == 0 && few_rows::takes_weight(arguments.gate_weight) &&
         few_rows::takes_weight(arguments.up_weight) &&
         few_rows::takes_weight(arguments.down_weight);
}

void run_gate_up(const CudaScope& scope, const Arguments& arguments, Function function,
                 int64_t rows, const Tensor& activated) {
  const GateUpProblem problem = describe_gate_up(arguments, function, rows, activated);
  const int64_t tiles = (problem.inner + kTileColumns - 1) / kTileColumns;
  few_rows::with_shape(scope, dtype_of(arguments.x), rows, tiles,
                       [&](auto type, auto groups, auto warps, unsigned blocks) {
                         constexpr int kGroups = decltype(groups)::value;
                         constexpr int kWarps = decltype(warps)::value;
                         launch_reading_ahead(scope,
                                              gate_up_kernel<decltype(type), kGroups, kWarps>,
                                              blocks, 32 * kWarps, 0, problem);
                       });
}

void run_down(const CudaScope& scope, const Arguments& arguments, const Tensor& activated,
              const Tensor& out) {
  few_rows::LinearProblem problem;
  problem.parts[0].weight = arguments.down_weight.const_data_ptr();
  problem.parts[0].bias = pointer_of(arguments.down_bias);
  for (few_rows::LinearPart& part : problem.parts) {
    part.end = static_cast<int>(arguments.down_weight.size(0));
  }
  problem.x = activated.const_data_ptr();
  problem.rows = static_cast<int>(activated.size(0));
  problem.depth = static_cast<int>(activated.size(1));
  problem.x_stride = problem.depth;
  problem.out = out.mutable_data_ptr();
  problem.out_stride = problem.columns();
  few_rows::launch_linear(scope, dtype_of(out), problem);
}

// act(x gate^T) * (x up^T) of many rows: one product on Hopper's tiles where they take it, else ATen's two with our
// activation after them.
Tensor activated_rows(const CudaScope& scope, const Arguments& arguments, Function function,
                      int64_t rows) {
  if (takes_tiles(scope, arguments, rows)) {
    const Tensor activated = new_tensor(arguments.x, {rows, arguments.gate_weight.size(0)});
    run_tiles(scope, dtype_of(activated), describe_gate_up(arguments, function, rows, activated));
    return activated;
  }
  Tensor gate = aten_linear(arguments.x, arguments.gate_weight, arguments.gate_bias);
  const Tensor up = aten_linear(arguments.x, arguments.up_weight, arguments.up_bias);
  activate_all(scope, function, gate, up, gate);
  return torch::stable::view(gate, {rows, gate.size(gate.dim() - 1)});
}

void run_many_rows(const CudaScope& scope, Tensor& out, const Arguments& arguments,
                   Function function, int64_t rows) {
  const int64_t hidden = arguments.down_weight.size(0);
  Tensor matrix = torch::stable::view(out, {rows, hidden});
  const Tensor activated = arguments.gate_weight.size(0) == 0
                               ? new_tensor(out, {rows, 0})
                               : activated_rows(scope, arguments, function, rows);
  if (arguments.down_bias || arguments.gate_weight.size(0) == 0) {
    torch::stable::copy_(matrix,
                         aten_linear(activated, arguments.down_weight, arguments.down_bias));
    return;
  }
  aten_product(matrix, activated, transposed(arguments.down_weight));
}

void run_cuda(Tensor& out, const Arguments& arguments, Function function) {
  if (out.numel() == 0) {
    return;
  }
  const int64_t rows = count_rows(arguments.x);
  const CudaScope scope(out);
  if (!takes_few_rows(arguments, rows)) {
    return run_many_rows(scope, out, arguments, function, rows);
  }
  const Tensor activated = new_tensor(out, {rows, arguments.gate_weight.size(0)});
  run_gate_up(scope, arguments, function, rows, activated);
  run_down(scope, arguments, activated, out);
}

}  // namespace

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::mlp::CudaOps::implement(ops); }

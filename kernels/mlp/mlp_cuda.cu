// The gated MLP on CUDA. Few rows of a 16-bit dtype: our own products, bound by reading the weights once,
// in two launches. Many rows of it on Hopper: gate and up as one product of tiles that activates them. All else:
// ATen's products with our activation between them.

#include <algorithm>

#include "kernels/common/aten.h"
#include "kernels/common/few_rows_launch.h"
#include "kernels/mlp/mlp_kernel.cuh"
#include "kernels/mlp/mlp_ops.h"
#include "kernels/mlp/sm90_gate_up.h"

namespace graft_kernels::mlp {

namespace {

constexpr unsigned kActivateThreads = 256;

const void* pointer_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

bool takes_few_rows(const Arguments& arguments, int64_t rows) {
  const Tensor& x = arguments.x;
  return few_rows::takes_input(x, rows, x.size(x.dim() - 1)) &&
         arguments.down_weight.size(1) % 8 == 0 && few_rows::takes_weight(arguments.gate_weight) &&
         few_rows::takes_weight(arguments.up_weight) &&
         few_rows::takes_weight(arguments.down_weight);
}

GateUpProblem describe_gate_up(const Arguments& arguments, Function function, int64_t rows,
                               void* out) {
  GateUpProblem problem;
  problem.function = function;
  problem.gate_weight = arguments.gate_weight.const_data_ptr();
  problem.up_weight = arguments.up_weight.const_data_ptr();
  problem.gate_bias = pointer_of(arguments.gate_bias);
  problem.up_bias = pointer_of(arguments.up_bias);
  problem.x = arguments.x.const_data_ptr();
  problem.rows = static_cast<int>(rows);
  problem.depth = static_cast<int>(arguments.gate_weight.size(1));
  problem.inner = static_cast<int>(arguments.gate_weight.size(0));
  problem.out = out;
  return problem;
}

void run_gate_up(const CudaScope& scope, const Arguments& arguments, Function function,
                 int64_t rows, const Tensor& activated) {
  const GateUpProblem problem =
      describe_gate_up(arguments, function, rows, activated.mutable_data_ptr());
  const unsigned blocks =
      few_rows::grid_size(scope, (problem.inner + kTileColumns - 1) / kTileColumns);
  few_rows::with_half_type(dtype_of(arguments.x), [&](auto type) {
    using T = decltype(type);
    const auto kernel =
        problem.rows <= few_rows::kGroupRows ? gate_up_kernel<T, 1> : gate_up_kernel<T, 2>;
    launch_overlapping(scope, kernel, blocks, few_rows::kThreads, 0, problem);
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

// gate = function(gate) * up, both contiguous.
template <typename T>
void activate_all(const CudaScope& scope, Function function, Tensor& gate, const Tensor& up) {
  auto* gates = static_cast<T*>(gate.mutable_data_ptr());
  const auto* ups = static_cast<const T*>(up.const_data_ptr());
  const auto launch = [&](auto size) {
    constexpr int kSize = decltype(size)::value;
    const int64_t vectors = gate.numel() / kSize;
    const int64_t blocks = std::min<int64_t>((vectors + kActivateThreads - 1) / kActivateThreads,
                                             16 * scope.attribute(cudaDevAttrMultiProcessorCount));
    activate_kernel<T, kSize>
        <<<static_cast<unsigned>(blocks), kActivateThreads, 0, scope.stream()>>>(function, gates,
                                                                                 ups, vectors);
    check_cuda(cudaGetLastError(), "activate_kernel");
  };
  // ATen's own results are aligned to far more than 16 bytes.
  gate.numel() % kVectorSize<T> == 0 ? launch(std::integral_constant<int, kVectorSize<T>>())
                                     : launch(std::integral_constant<int, 1>());
}

// act(x gate^T) * (x up^T) of many rows: one product on Hopper's tiles where they take it, else ATen's two with our
// activation after them.
Tensor activated_rows(const CudaScope& scope, const Arguments& arguments, Function function,
                      int64_t rows) {
  const Dtype dtype = dtype_of(arguments.x);
  const int64_t inner = arguments.gate_weight.size(0);
  if (std::max({rows, inner, arguments.gate_weight.size(1)}) < INT32_MAX) {
    const Sm90Device device{10 * scope.attribute(cudaDevAttrComputeCapabilityMajor) +
                                scope.attribute(cudaDevAttrComputeCapabilityMinor),
                            scope.attribute(cudaDevAttrMultiProcessorCount), scope.stream()};
    GateUpProblem problem = describe_gate_up(arguments, function, rows, nullptr);
    if (*why_not_sm90(problem, dtype, device) == '\0') {
      const Tensor activated = torch::stable::new_empty(arguments.x, {rows, inner});
      problem.out = activated.mutable_data_ptr();
      run_sm90(problem, dtype, device);
      return activated;
    }
  }
  Tensor gate = aten_linear(arguments.x, arguments.gate_weight, arguments.gate_bias);
  const Tensor up = aten_linear(arguments.x, arguments.up_weight, arguments.up_bias);
  switch (dtype) {
    case Dtype::kFloat32:
      activate_all<float>(scope, function, gate, up);
      break;
    case Dtype::kBfloat16:
      activate_all<Bf16>(scope, function, gate, up);
      break;
    case Dtype::kFloat16:
      activate_all<Fp16>(scope, function, gate, up);
      break;
  }
  return torch::stable::view(gate, {rows, inner});
}

void run_many_rows(const CudaScope& scope, Tensor& out, const Arguments& arguments,
                   Function function, int64_t rows) {
  const int64_t hidden = arguments.down_weight.size(0);
  Tensor matrix = torch::stable::view(out, {rows, hidden});
  const Tensor activated = arguments.gate_weight.size(0) == 0
                               ? torch::stable::new_empty(out, {rows, 0})
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
  const Tensor activated = torch::stable::new_empty(out, {rows, arguments.gate_weight.size(0)});
  run_gate_up(scope, arguments, function, rows, activated);
  run_down(scope, arguments, activated, out);
}

}  // namespace

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::mlp::CudaOps::implement(ops); }

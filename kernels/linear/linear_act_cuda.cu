// linear_act on CUDA: our own products where they finish with the epilogue at hand (few rows; tiles on Hopper), else
// ATen's with the epilogue after them.

#include <algorithm>

#include "kernels/common/few_rows_launch.h"
#include "kernels/common/sm90_gemm_launch.h"
#include "kernels/linear/linear_act_kernel.cuh"
#include "kernels/linear/linear_act_ops.h"

namespace graft_kernels::linear {

namespace {

constexpr unsigned kFinishThreads = 256;
// What a tile's epilogue does shows beside short sums, and few tiles leave processors idle that ATen's smaller ones keep
// busy (docs/benchmarks.md).
constexpr int64_t kLeastDepth = 4096;
constexpr int64_t kLeastTiles = 1024;

const void* pointer_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

void run_few_rows(const CudaScope& scope, const Tensor& out, const ActArguments& arguments,
                  Activation activation, int64_t rows, int64_t row_stride) {
  FewRowsActProblem problem;
  for (few_rows::LinearPart& part : problem.linear.parts) {
    part = {arguments.weight.const_data_ptr(), pointer_of(arguments.bias),
            static_cast<int>(arguments.weight.size(0))};
  }
  problem.linear.x = arguments.x.const_data_ptr();
  problem.linear.x_stride = row_stride;
  problem.linear.rows = static_cast<int>(rows);
  problem.linear.depth = static_cast<int>(arguments.weight.size(1));
  problem.linear.out = out.mutable_data_ptr();
  problem.linear.out_stride = arguments.weight.size(0);
  problem.activation = activation;
  problem.residual = pointer_of(arguments.residual);
  const int64_t tiles = (arguments.weight.size(0) + few_rows::kTileRows - 1) / few_rows::kTileRows;
  few_rows::with_shape(
      scope, dtype_of(out), rows, tiles, [&](auto type, auto groups, auto warps, unsigned blocks) {
        constexpr int kGroups = decltype(groups)::value;
        constexpr int kWarps = decltype(warps)::value;
        launch_reading_ahead(scope, linear_act_kernel<decltype(type), kGroups, kWarps>, blocks,
                             32 * kWarps, 0, problem);
      });
}

struct Matrices {
  sm90::GemmMatrix x, weight;
};

Matrices matrices_of(const ActArguments& arguments, int64_t rows, int64_t row_stride) {
  const int64_t depth = arguments.weight.size(1);
  return {{arguments.x.const_data_ptr(), rows, depth, row_stride},
          {arguments.weight.const_data_ptr(), arguments.weight.size(0), depth, depth}};
}

// Empty where Hopper's tiles serve, else why not.
const char* why_not_tiles(const CudaScope& scope, Dtype dtype, const Matrices& matrices) {
  if (scope.attribute(cudaDevAttrComputeCapabilityMajor) != 9 || dtype == Dtype::kFloat32) {
    return "16-bit dtypes on compute capability 9.0 alone";
  }
  if (matrices.x.depth < kLeastDepth) {
    return "short sums";
  }
  for (const sm90::GemmMatrix& matrix : {matrices.x, matrices.weight}) {
    if (const char* why = sm90::why_not_gemm(matrix); *why != '\0') {
      return why;
    }
  }
  const int64_t tiles = ((matrices.x.rows + sm90::kGemmRows - 1) / sm90::kGemmRows) *
                        ((matrices.weight.rows + 255) / 256);
  return tiles < kLeastTiles ? "few tiles" : tiles > INT32_MAX / 2 ? "too many tiles" : "";
}

void run_tiles(const CudaScope& scope, const Tensor& out, const ActArguments& arguments,
               Activation activation, const Matrices& matrices) {
  sm90::ResultMatrix matrix = sm90::describe_results(dtype_of(out), out.mutable_data_ptr(),
                                                     matrices.x.rows, matrices.weight.rows);
  matrix.mapped = matrix.mapped && few_rows::is_aligned(pointer_of(arguments.residual));
  few_rows::with_half_type(dtype_of(out), [&](auto type) {
    using T = decltype(type);
    const LinearEpilogue<T> epilogue{matrix, static_cast<T*>(out.mutable_data_ptr()), activation,
                                     static_cast<const T*>(pointer_of(arguments.bias)),
                                     static_cast<const T*>(pointer_of(arguments.residual))};
    sm90::launch_gemm<T>(scope.stream(), scope.attribute(cudaDevAttrMultiProcessorCount),
                         dtype_of(out), matrices.x, matrices.weight, matrices.weight,
                         sm90::count_tiles(matrices.x, matrices.weight.rows, 1), epilogue);
  });
}

// values = act(values) + residual, all contiguous.
template <typename T>
void finish(const CudaScope& scope, const Tensor& out, Activation activation,
            const void* residual) {
  auto* values = static_cast<T*>(out.mutable_data_ptr());
  const auto* added = static_cast<const T*>(residual);
  const auto launch = [&](auto size) {
    constexpr int kSize = decltype(size)::value;
    const int64_t vectors = out.numel() / kSize;
    const int64_t blocks = std::min<int64_t>((vectors + kFinishThreads - 1) / kFinishThreads,
                                             16 * scope.attribute(cudaDevAttrMultiProcessorCount));
    linear_finish_kernel<T, kSize>
        <<<static_cast<unsigned>(blocks), kFinishThreads, 0, scope.stream()>>>(activation, values,
                                                                               added, vectors);
    check_cuda(cudaGetLastError(), "linear_finish_kernel");
  };
  const bool whole = out.numel() % kVectorSize<T> == 0 && few_rows::is_aligned(values) &&
                     few_rows::is_aligned(added);
  whole ? launch(std::integral_constant<int, kVectorSize<T>>())
        : launch(std::integral_constant<int, 1>());
}

void finish_any(const CudaScope& scope, const Tensor& out, Activation activation,
                const void* residual) {
  if (activation == Activation::kNone && residual == nullptr) {
    return;
  }
  switch (dtype_of(out)) {
    case Dtype::kFloat32:
      return finish<float>(scope, out, activation, residual);
    case Dtype::kBfloat16:
      return finish<Bf16>(scope, out, activation, residual);
    case Dtype::kFloat16:
      return finish<Fp16>(scope, out, activation, residual);
  }
}

void run_products(const CudaScope& scope, Tensor& out, const ActArguments& arguments,
                  Activation activation, int64_t rows) {
  const void* residual = pointer_of(arguments.residual);
  const Part part{arguments.weight, arguments.bias};
  if (residual != out.const_data_ptr()) {
    run_products_cuda(out, arguments.x, part, rows);
    return finish_any(scope, out, activation, residual);
  }
  // The products are written where the results will be, so a residual that lies there is set aside.
  const Tensor aside = torch::stable::clone(out);
  run_products_cuda(out, arguments.x, part, rows);
  finish_any(scope, out, activation, aside.const_data_ptr());
}

void run_cuda(const char* op, Tensor& out, const ActArguments& arguments, Activation activation,
              int64_t rows) {
  const CudaScope scope(out);
  const RowLayout layout = row_layout(op, {"x", arguments.x});
  const int64_t row_stride = rows > 1 ? layout.stride[0] : arguments.weight.size(1);
  const bool even = layout.num_dims == 1;
  if (even && arguments.weight.size(0) < INT32_MAX / 4 &&
      few_rows::takes_input(arguments.x, rows, row_stride) &&
      few_rows::takes_weight(arguments.weight)) {
    return run_few_rows(scope, out, arguments, activation, rows, row_stride);
  }
  const Matrices matrices = matrices_of(arguments, rows, row_stride);
  if (even && *why_not_tiles(scope, dtype_of(out), matrices) == '\0') {
    return run_tiles(scope, out, arguments, activation, matrices);
  }
  run_products(scope, out, arguments, activation, rows);
}

}  // namespace

using ActCudaOps = ActOps<&run_cuda>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::linear::ActCudaOps::implement(ops); }

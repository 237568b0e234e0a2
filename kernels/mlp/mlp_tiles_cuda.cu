// Launches the MLP's products on Hopper's tiles: gate and up, and the gradient of what is made of them.

#include "kernels/common/sm90_gemm_launch.h"
#include "kernels/mlp/mlp_cuda.h"
#include "kernels/mlp/mlp_tiles_kernel.cuh"

namespace graft_kernels::mlp {

namespace {

// Fewer clusters of tiles than these leave processors idle that ATen's smaller tiles keep busy, and so do rows that fill
// the last cluster by half.
constexpr int kClusterRows = sm90::kGemmRows * sm90::kGemmCluster;
constexpr int kLeastClusters = 60;

bool fills_clusters(const CudaScope& scope, int64_t rows, int64_t columns, int tile_columns) {
  const int64_t clusters =
      ((rows + kClusterRows - 1) / kClusterRows) * ((columns + tile_columns - 1) / tile_columns);
  return scope.attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         scope.attribute(cudaDevAttrComputeCapabilityMinor) == 0 && clusters >= kLeastClusters &&
         clusters <= INT32_MAX / 2 &&
         (rows >= 2 * kClusterRows || (rows > kClusterRows / 2 && rows <= kClusterRows));
}

sm90::GemmMatrix matrix_of(const void* first, int64_t rows, int64_t depth) {
  return {first, rows, depth, depth};
}

sm90::GemmMatrix matrix_of(const Tensor& matrix) {
  return matrix_of(matrix.const_data_ptr(), matrix.size(0), matrix.size(1));
}

template <typename T, bool kKeeps>
void launch(const CudaScope& scope, Dtype dtype, const GateUpProblem& problem) {
  const sm90::GemmMatrix x = matrix_of(problem.x, problem.rows, problem.depth);
  const auto result = [&](void* out) {
    return out == nullptr ? sm90::ResultMatrix{}
                          : sm90::describe_results(dtype, out, problem.rows, problem.inner);
  };
  const GateUpEpilogue<T, kKeeps> epilogue{result(problem.out),
                                           result(problem.gate),
                                           result(problem.up),
                                           static_cast<T*>(problem.out),
                                           static_cast<T*>(problem.gate),
                                           static_cast<T*>(problem.up),
                                           problem.function,
                                           static_cast<const T*>(problem.gate_bias),
                                           static_cast<const T*>(problem.up_bias)};
  sm90::launch_gemm<T>(scope.stream(), scope.attribute(cudaDevAttrMultiProcessorCount), dtype, x,
                       matrix_of(problem.gate_weight, problem.inner, problem.depth),
                       matrix_of(problem.up_weight, problem.inner, problem.depth),
                       sm90::count_tiles(x, problem.inner, 2), epilogue);
}

}  // namespace

bool takes_tiles(const CudaScope& scope, const Arguments& arguments, int64_t rows) {
  const int64_t inner = arguments.gate_weight.size(0), depth = arguments.gate_weight.size(1);
  if (dtype_of(arguments.x) == Dtype::kFloat32 || depth == 0 ||
      !fills_clusters(scope, rows, inner, sm90::kGemmBoxColumns)) {
    return false;
  }
  const sm90::GemmMatrix x = matrix_of(arguments.x.const_data_ptr(), rows, depth);
  const sm90::GemmMatrix weights[] = {matrix_of(arguments.gate_weight),
                                      matrix_of(arguments.up_weight)};
  return *sm90::why_not_gemm(x) == '\0' && *sm90::why_not_gemm(weights[0]) == '\0' &&
         *sm90::why_not_gemm(weights[1]) == '\0';
}

void run_tiles(const CudaScope& scope, Dtype dtype, const GateUpProblem& problem) {
  const auto launch_type = [&](auto type) {
    using T = decltype(type);
    problem.gate == nullptr ? launch<T, false>(scope, dtype, problem)
                            : launch<T, true>(scope, dtype, problem);
  };
  dtype == Dtype::kBfloat16 ? launch_type(Bf16{}) : launch_type(Fp16{});
}

bool takes_gradient_tiles(const CudaScope& scope, const GradientProblem& problem) {
  const int64_t hidden = problem.down_weight.size(0), inner = problem.down_weight.size(1);
  return dtype_of(problem.grad_out) != Dtype::kFloat32 && hidden > 0 &&
         fills_clusters(scope, problem.grad_out.size(0), inner, 2 * sm90::kGemmBoxColumns) &&
         *sm90::why_not_gemm(matrix_of(problem.grad_out)) == '\0' &&
         *sm90::why_not_gemm(matrix_of(problem.down_weight)) == '\0' &&
         is_aligned(problem.products.gate) && is_aligned(problem.products.up);
}

void run_gradient_tiles(const CudaScope& scope, const GradientProblem& problem) {
  const auto launch_finish = [&](auto type, auto function) {
    using T = decltype(type);
    const GradientFinish<T, decltype(function)::value> finish{
        problem.pointers<T>(), problem.grad_out.size(0),
        static_cast<int>(problem.down_weight.size(1))};
    sm90::launch_handover_gemm<T>(scope.stream(), scope.attribute(cudaDevAttrMultiProcessorCount),
                                  dtype_of(problem.grad_out), matrix_of(problem.grad_out),
                                  matrix_of(problem.down_weight), finish);
  };
  const auto launch_type = [&](auto type) {
    switch (problem.function) {
      case Function::kSilu:
        return launch_finish(type, std::integral_constant<Function, Function::kSilu>());
      case Function::kGelu:
        return launch_finish(type, std::integral_constant<Function, Function::kGelu>());
      case Function::kGeluTanh:
        return launch_finish(type, std::integral_constant<Function, Function::kGeluTanh>());
    }
  };
  dtype_of(problem.grad_out) == Dtype::kBfloat16 ? launch_type(Bf16{}) : launch_type(Fp16{});
}

}  // namespace graft_kernels::mlp

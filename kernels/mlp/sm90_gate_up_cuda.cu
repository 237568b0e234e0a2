// Launches gate and up of the MLP on Hopper's tiles.

#include "kernels/common/sm90_gemm_launch.h"
#include "kernels/mlp/sm90_gate_up.h"
#include "kernels/mlp/sm90_gate_up_kernel.cuh"

namespace graft_kernels::mlp {

namespace {

// Fewer rows and tiles than these leave processors idle that ATen's smaller tiles keep busy.
constexpr int kLeastRows = 512;
constexpr int kLeastClusters = 60;

sm90::GemmMatrix matrix_of(const void* first, int64_t rows, int64_t depth) {
  return {first, rows, depth, depth};
}

}  // namespace

const char* why_not_sm90(const GateUpProblem& problem, Dtype dtype, const Sm90Device& device) {
  if (device.compute_capability != 90 || dtype == Dtype::kFloat32) {
    return "16-bit dtypes on compute capability 9.0 alone";
  }
  if (problem.rows < kLeastRows || problem.depth == 0) {
    return "few rows";
  }
  for (const sm90::GemmMatrix& matrix :
       {matrix_of(problem.x, problem.rows, problem.depth),
        matrix_of(problem.gate_weight, problem.inner, problem.depth),
        matrix_of(problem.up_weight, problem.inner, problem.depth)}) {
    if (const char* why = sm90::why_not_gemm(matrix); *why != '\0') {
      return why;
    }
  }
  const int64_t clusters =
      ((int64_t{problem.rows} + 255) / 256) * ((int64_t{problem.inner} + 127) / 128);
  return clusters < kLeastClusters ? "few tiles" : clusters > INT32_MAX / 2 ? "too many tiles" : "";
}

void run_sm90(const GateUpProblem& problem, Dtype dtype, const Sm90Device& device) {
  const sm90::GemmMatrix x = matrix_of(problem.x, problem.rows, problem.depth);
  const auto launch = [&](auto type) {
    using T = decltype(type);
    const GateUpEpilogue<T> epilogue{
        sm90::describe_results(dtype, problem.out, problem.rows, problem.inner),
        static_cast<T*>(problem.out), problem.function, static_cast<const T*>(problem.gate_bias),
        static_cast<const T*>(problem.up_bias)};
    sm90::launch_gemm<T>(device.stream, device.processors, dtype, x,
                         matrix_of(problem.gate_weight, problem.inner, problem.depth),
                         matrix_of(problem.up_weight, problem.inner, problem.depth),
                         sm90::count_tiles(x, problem.inner, 2), epilogue);
  };
  dtype == Dtype::kBfloat16 ? launch(Bf16{}) : launch(Fp16{});
}

}  // namespace graft_kernels::mlp

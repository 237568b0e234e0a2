// Launches RMSNorm's backward of two rows a turn.

#include <algorithm>

#include "kernels/common/registration.h"
#include "kernels/rms-norm/sm90_two_rows_backward.h"
#include "kernels/rms-norm/sm90_two_rows_backward_kernel.cuh"

namespace graft_kernels::rms_norm::sm90 {

namespace {

// Threads of a multiprocessor in all its blocks, where a block has fewer.
constexpr int64_t kResidentThreads = 512;

template <typename X, bool kAdd, int kVectors, int kMaxThreads>
void launch(BackwardProblem& problem, const Tensor& x, const CudaScope& scope, Tensor& partial) {
  const auto kernel = two_rows_bwd_kernel<X, kAdd, kVectors, kMaxThreads>;
  constexpr int64_t kPerWarp = int64_t{kWarp} * kVectors * kVectorSize<X>;
  const int64_t threads = (problem.columns + kPerWarp - 1) / kPerWarp * kWarp;
  const int64_t row_bytes = problem.columns * static_cast<int64_t>(sizeof(X));
  const int64_t bytes = kTurnStages * kTurnRows * TurnRow<X, kAdd, kVectors>::kStreams * row_bytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
  const int64_t blocks = std::max<int64_t>(kResidentThreads / threads, 1) *
                         scope.attribute(cudaDevAttrMultiProcessorCount);
  problem.parts = std::min((problem.rows + kTurnRows - 1) / kTurnRows, blocks);
  partial = torch::stable::new_empty(x, {problem.parts, problem.columns}, ScalarType::Float);
  problem.partial = static_cast<float*>(partial.mutable_data_ptr());
  kernel<<<static_cast<unsigned>(problem.parts), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), scope.stream()>>>(problem);
  check_cuda(cudaGetLastError(), "two_rows_bwd_kernel");
}

template <typename X, bool kAdd>
bool launch_vectors(BackwardProblem& problem, const Tensor& x, const CudaScope& scope,
                    Tensor& partial) {
  const int64_t vectors = problem.columns / kVectorSize<X>;
  if (vectors <= 512) {
    launch<X, kAdd, 1, 512>(problem, x, scope, partial);
  } else if (vectors <= 768) {
    launch<X, kAdd, 1, 768>(problem, x, scope, partial);
  } else if (vectors <= 1024) {
    launch<X, kAdd, 2, 512>(problem, x, scope, partial);
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool run_two_rows(BackwardProblem& problem, const Tensor& x, const CudaScope& scope,
                  Tensor& partial) {
  // Fewer vectors are better left to some lanes of a warp.
  constexpr int64_t kLeastBytes = 33 * 16;
  if (problem.columns * bytes_of(problem.x_dtype) < kLeastBytes || problem.rows > INT32_MAX / 2 ||
      scope.attribute(cudaDevAttrComputeCapabilityMajor) != 9) {
    return false;
  }
  const auto with_storage_type = [&](auto storage) {
    using X = decltype(storage);
    return problem.grad_sum != nullptr ? launch_vectors<X, true>(problem, x, scope, partial)
                                       : launch_vectors<X, false>(problem, x, scope, partial);
  };
  switch (problem.x_dtype) {
    case Dtype::kFloat32:
      return with_storage_type(float());
    case Dtype::kBfloat16:
      return with_storage_type(Bf16());
    default:
      return with_storage_type(Fp16());
  }
}

}  // namespace graft_kernels::rms_norm::sm90

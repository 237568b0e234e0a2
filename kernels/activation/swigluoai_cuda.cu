// gpt-oss' activation on CUDA: picks the vector width by alignment and launches on the current stream.

#include <cstdint>

#include "kernels/activation/activation_layout.h"
#include "kernels/activation/swigluoai_kernel.cuh"
#include "kernels/activation/swigluoai_ops.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::activation {

namespace {

Layout layout_of(const SwigluoaiProblem& problem, int64_t element_bytes) {
  const auto aligned = [&](const void* pointer, const RowLayout& rows) {
    return is_aligned(pointer, rows, problem.rows, element_bytes);
  };
  bool fits = aligned(problem.input, problem.input_rows) && aligned(problem.out, problem.out_rows);
  bool single_stride = problem.input_rows.num_dims == 1 && problem.out_rows.num_dims == 1;
  if (problem.grad_out != nullptr) {
    fits = fits && aligned(problem.grad_out, problem.grad_out_rows);
    single_stride = single_stride && problem.grad_out_rows.num_dims == 1;
  }
  return choose_layout(fits, single_stride, problem.rows, problem.columns, element_bytes);
}

template <bool kBackward, typename T, Layout kLayout>
void launch(const SwigluoaiProblem& problem, const CudaScope& scope) {
  constexpr int64_t kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int64_t kPerBlock = kThreads * (kLayout == Layout::kAny ? 1 : kPairUnroll);
  const int64_t vectors = problem.columns / kSize * problem.rows;
  launch_overlapping(scope, swigluoai_kernel<kBackward, T, kLayout>,
                     count_blocks(vectors, kPerBlock), kThreads, 0, problem);
}

template <bool kBackward, typename T>
void launch_layout(const SwigluoaiProblem& problem, const CudaScope& scope) {
  switch (layout_of(problem, sizeof(T))) {
    case Layout::kFlat:
      return launch<kBackward, T, Layout::kFlat>(problem, scope);
    case Layout::kRows:
      return launch<kBackward, T, Layout::kRows>(problem, scope);
    case Layout::kAny:
      return launch<kBackward, T, Layout::kAny>(problem, scope);
  }
}

template <typename T>
void launch_direction(const SwigluoaiProblem& problem, const CudaScope& scope) {
  return problem.grad_out != nullptr ? launch_layout<true, T>(problem, scope)
                                     : launch_layout<false, T>(problem, scope);
}

void run_cuda(const SwigluoaiProblem& problem, const Tensor& input) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const CudaScope scope(input);
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_direction<float>(problem, scope);
    case Dtype::kBfloat16:
      return launch_direction<Bf16>(problem, scope);
    case Dtype::kFloat16:
      return launch_direction<Fp16>(problem, scope);
  }
}

}  // namespace

using CudaSwigluoaiOps = SwigluoaiOps<&run_cuda>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::activation::CudaSwigluoaiOps::implement(ops); }

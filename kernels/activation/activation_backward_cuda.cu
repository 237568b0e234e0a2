// Gradients of the activations on CUDA: picks the vector width by alignment and launches on the
// current stream.

#include <cstdint>

#include "kernels/activation/activation_backward_kernel.cuh"
#include "kernels/activation/activation_backward_ops.h"
#include "kernels/activation/activation_layout.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::activation {

namespace {

Layout layout_of(const BackwardProblem& problem, int64_t element_bytes) {
  const bool gated = problem.up != nullptr;
  const auto aligned = [&](const void* pointer, const RowLayout& rows) {
    return is_aligned(pointer, rows, problem.rows, element_bytes);
  };
  bool fits = aligned(problem.grad_out, problem.grad_out_rows) &&
              aligned(problem.gate, problem.gate_rows) &&
              aligned(problem.grad_gate, problem.grad_gate_rows);
  bool single_stride = problem.grad_out_rows.num_dims == 1 && problem.gate_rows.num_dims == 1 &&
                       problem.grad_gate_rows.num_dims == 1;
  if (gated) {
    fits = fits && aligned(problem.up, problem.up_rows) &&
           aligned(problem.grad_up, problem.grad_up_rows);
    single_stride =
        single_stride && problem.up_rows.num_dims == 1 && problem.grad_up_rows.num_dims == 1;
  }
  return choose_layout(fits, single_stride, problem.rows, problem.columns, element_bytes);
}

template <Function kFunction, bool kGated, typename T, Layout kLayout>
void launch(const BackwardProblem& problem, cudaStream_t stream) {
  constexpr int64_t kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int64_t kPerBlock = kThreads * (kLayout == Layout::kAny ? 1 : kBackwardUnroll);
  const int64_t vectors = problem.columns / kSize * problem.rows;
  activation_bwd_kernel<kFunction, kGated, T, kLayout>
      <<<count_blocks(vectors, kPerBlock), kThreads, 0, stream>>>(problem);
  check_cuda(cudaGetLastError(), "activation_bwd_kernel");
}

template <Function kFunction, bool kGated, typename T>
void launch_layout(const BackwardProblem& problem, cudaStream_t stream) {
  switch (layout_of(problem, sizeof(T))) {
    case Layout::kFlat:
      return launch<kFunction, kGated, T, Layout::kFlat>(problem, stream);
    case Layout::kRows:
      return launch<kFunction, kGated, T, Layout::kRows>(problem, stream);
    case Layout::kAny:
      return launch<kFunction, kGated, T, Layout::kAny>(problem, stream);
  }
}

template <Function kFunction, typename T>
void launch_function(const BackwardProblem& problem, cudaStream_t stream) {
  if constexpr (kHasProduct<kFunction>) {
    if (problem.up != nullptr) {
      return launch_layout<kFunction, true, T>(problem, stream);
    }
  }
  launch_layout<kFunction, false, T>(problem, stream);
}

template <typename T>
void launch_dtype(const BackwardProblem& problem, cudaStream_t stream) {
  switch (problem.function) {
    case Function::kSilu:
      return launch_function<Function::kSilu, T>(problem, stream);
    case Function::kGelu:
      return launch_function<Function::kGelu, T>(problem, stream);
    case Function::kGeluTanh:
    case Function::kGeluNew:  // rounds in other places, so its derivative is the same
      return launch_function<Function::kGeluTanh, T>(problem, stream);
    case Function::kGeluFast:
      return launch_function<Function::kGeluFast, T>(problem, stream);
    case Function::kGeluQuick:
      return launch_function<Function::kGeluQuick, T>(problem, stream);
  }
}

void run_backward_cuda(const BackwardProblem& problem, const Tensor& gate) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const CudaScope scope(gate);
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_dtype<float>(problem, scope.stream());
    case Dtype::kBfloat16:
      return launch_dtype<Bf16>(problem, scope.stream());
    case Dtype::kFloat16:
      return launch_dtype<Fp16>(problem, scope.stream());
  }
}

}  // namespace

using CudaBackwardOps = BackwardOps<&run_backward_cuda>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::activation::CudaBackwardOps::implement(ops); }

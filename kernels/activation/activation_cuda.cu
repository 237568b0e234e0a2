// Activations on CUDA: picks the vector width by alignment and launches on the current stream.

#include <cstdint>

#include "kernels/activation/activation_layout.h"
#include "kernels/activation/activation_ops.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::activation {

namespace {

Layout layout_of(const Problem& problem, int64_t element_bytes) {
  const auto aligned = [&](const void* pointer, const RowLayout& rows) {
    return is_aligned(pointer, rows, problem.rows, element_bytes);
  };
  const bool fits = aligned(problem.gate, problem.gate_rows) &&
                    aligned(problem.out, problem.out_rows) &&
                    (problem.up == nullptr || aligned(problem.up, problem.up_rows));
  const bool single_stride = problem.gate_rows.num_dims == 1 && problem.out_rows.num_dims == 1 &&
                             problem.up_rows.num_dims == 1;
  return choose_layout(fits, single_stride, problem.rows, problem.columns, element_bytes);
}

template <Function kFunction, bool kGated, typename T, Layout kLayout>
void launch(const Problem& problem, const CudaScope& scope) {
  constexpr int64_t kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int64_t kPerBlock = kThreads * (kLayout == Layout::kAny ? 1 : kUnroll<kGated>);
  const int64_t vectors = problem.columns / kSize * problem.rows;
  launch_overlapping(scope, activation_fwd_kernel<kFunction, kGated, T, kLayout>,
                     count_blocks(vectors, kPerBlock), kThreads, 0, problem);
}

template <Function kFunction, bool kGated, typename T>
void launch_layout(const Problem& problem, const CudaScope& scope) {
  switch (layout_of(problem, sizeof(T))) {
    case Layout::kFlat:
      return launch<kFunction, kGated, T, Layout::kFlat>(problem, scope);
    case Layout::kRows:
      return launch<kFunction, kGated, T, Layout::kRows>(problem, scope);
    case Layout::kAny:
      return launch<kFunction, kGated, T, Layout::kAny>(problem, scope);
  }
}

template <Function kFunction, typename T>
void launch_function(const Problem& problem, const CudaScope& scope) {
  if constexpr (kHasProduct<kFunction>) {
    if (problem.up != nullptr) {
      return launch_layout<kFunction, true, T>(problem, scope);
    }
  }
  launch_layout<kFunction, false, T>(problem, scope);
}

template <typename T>
void launch_dtype(const Problem& problem, const CudaScope& scope) {
  switch (problem.function) {
    case Function::kSilu:
      return launch_function<Function::kSilu, T>(problem, scope);
    case Function::kGelu:
      return launch_function<Function::kGelu, T>(problem, scope);
    case Function::kGeluTanh:
      return launch_function<Function::kGeluTanh, T>(problem, scope);
    case Function::kGeluNew:
      return launch_function<Function::kGeluNew, T>(problem, scope);
    case Function::kGeluFast:
      return launch_function<Function::kGeluFast, T>(problem, scope);
    case Function::kGeluQuick:
      return launch_function<Function::kGeluQuick, T>(problem, scope);
  }
}

void run_cuda(const Problem& problem, const Tensor& input) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const CudaScope scope(input);
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_dtype<float>(problem, scope);
    case Dtype::kBfloat16:
      return launch_dtype<Bf16>(problem, scope);
    case Dtype::kFloat16:
      return launch_dtype<Fp16>(problem, scope);
  }
}

}  // namespace

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::activation::CudaOps::implement(ops); }

// Gated RMSNorm and LayerNorm on CUDA: picks the kernel by row length and alignment, and launches it on the current
// stream of x's device.

#include <algorithm>

#include "kernels/rms-norm/forms_kernel.cuh"
#include "kernels/rms-norm/forms_launch.h"
#include "kernels/rms-norm/forms_ops.h"
#include "kernels/rms-norm/forms_run_cuda.h"

namespace graft_kernels::rms_norm {

namespace {

void run_cuda(const FormProblem& problem, const Tensor& x) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const CudaScope scope(x);
  const bool whole = is_whole(problem);
  with_storage(problem.x_dtype, [&](auto storage) {
    using X = decltype(storage);
    const int64_t vectors = (problem.columns + kVectorSize<X> - 1) / kVectorSize<X>;
    const FormShape shape = form_shape(vectors, whole);
    const int rows_of_block = shape.threads / shape.threads_of_row;
    const auto blocks = static_cast<unsigned>(
        std::min<int64_t>((problem.rows + rows_of_block - 1) / rows_of_block, int64_t{1} << 30));
    with_form(problem.form, shape, whole, [&](auto form, auto kept, auto aligned) {
      launch_overlapping(scope,
                         form_fwd_kernel<decltype(form)::value, X, decltype(kept)::value,
                                         decltype(aligned)::value>,
                         blocks, static_cast<unsigned>(shape.threads), 0, problem,
                         shape.threads_of_row);
    });
  });
}

}  // namespace

using CudaFormOps = FormOps<&run_cuda, &run_form_backward_cuda>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::rms_norm::CudaFormOps::implement(ops); }

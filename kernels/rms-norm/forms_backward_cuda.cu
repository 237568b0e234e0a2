// The backward of the gated RMSNorm and of LayerNorm on CUDA: picks the kernel by row length and alignment, and
// launches it on the current stream of x's device.

#include <algorithm>

#include "kernels/rms-norm/forms_backward_kernel.cuh"
#include "kernels/rms-norm/forms_launch.h"
#include "kernels/rms-norm/forms_run_cuda.h"
#include "kernels/rms-norm/rms_norm_weight_kernel.cuh"
#include "kernels/rms-norm/sm90_ring_backward.h"

namespace graft_kernels::rms_norm {

namespace {

bool is_whole_backward(const FormBackwardProblem& problem) {
  const int64_t bytes = bytes_of(problem.call.x_dtype);
  return is_whole(problem.call) && is_aligned(problem.grad_out, problem.grad_out_rows, bytes) &&
         is_aligned(problem.grad_x, problem.grad_x_rows, bytes) &&
         is_aligned(problem.grad_gate, problem.grad_gate_rows, bytes);
}

// Parts of the rows of a group: no more than stay busy, nor than 256 MB of partial sums.
int64_t count_parts(const FormProblem& call, const FormShape& shape, const CudaScope& scope) {
  constexpr int64_t kPartialElements = int64_t{1} << 26;
  const int64_t rows_of_block = shape.threads / shape.threads_of_row;
  const int64_t turns = (call.rows / call.groups + rows_of_block - 1) / rows_of_block;
  const int64_t threads = shape.kept == 1 ? 1024 : 512;
  const int64_t resident = static_cast<int64_t>(scope.attribute(cudaDevAttrMultiProcessorCount)) *
                           threads / shape.threads;
  const int64_t affordable = kPartialElements / (call.groups * call.columns);
  return std::min(turns, std::max<int64_t>(std::min(resident / call.groups, affordable), 1));
}

void sum_parts(const FormBackwardProblem& problem, const CudaScope& scope) {
  const FormProblem& call = problem.call;
  launch_weight_sum(
      {problem.partial, problem.parts, call.groups * call.columns, problem.grad_weight},
      call.weight_dtype, scope);
  if (call.form == Form::kLayer) {
    launch_weight_sum({problem.partial_bias, problem.parts, call.columns, problem.grad_bias},
                      call.weight_dtype, scope);
  }
}

template <typename X>
void launch_rows(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope) {
  const FormProblem& call = problem.call;
  const bool whole = is_whole_backward(problem), is_layer = call.form == Form::kLayer;
  const int64_t vectors = (call.columns + kVectorSize<X> - 1) / kVectorSize<X>;
  FormShape shape = form_shape(vectors, whole);
  if (shape.kept == 0) {
    shape.threads_of_row = std::max(shape.threads_of_row, kWarp);
    shape.threads = shape.threads_of_row;  // the shares of a block lie in memory: one row at a time
  }
  problem.parts = count_parts(call, shape, scope);
  const int64_t elements = problem.parts * call.groups * call.columns;
  const Tensor partial =
      torch::stable::new_empty(x, {(is_layer ? 2 : 1) * elements}, ScalarType::Float);
  problem.partial = static_cast<float*>(partial.mutable_data_ptr());
  problem.partial_bias = is_layer ? problem.partial + elements : nullptr;
  const int rows_of_block = shape.threads / shape.threads_of_row;
  const size_t shared = rows_of_block > 1 ? sizeof(float) * rows_of_block * call.columns : 0;
  const auto blocks = static_cast<unsigned>(problem.parts * call.groups);
  with_form(call.form, shape, whole, [&](auto form, auto kept, auto aligned) {
    form_bwd_kernel<decltype(form)::value, X, decltype(kept)::value, decltype(aligned)::value>
        <<<blocks, shape.threads, shared, scope.stream()>>>(problem, shape.threads_of_row);
    check_cuda(cudaGetLastError(), "form_bwd_kernel");
  });
  sum_parts(problem, scope);
}

// Rows through shared memory; false where they are left to the other kernels.
bool try_ring(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope) {
  if (!is_whole_backward(problem) || !sm90::takes_rows(problem.call, scope)) {
    return false;
  }
  Tensor partial;
  const bool done = problem.call.form == Form::kLayer ? sm90::run_layer(problem, x, scope, partial)
                                                      : sm90::run_gated(problem, x, scope, partial);
  if (done) {
    sum_parts(problem, scope);
  }
  return done;
}

}  // namespace

void run_form_backward_cuda(FormBackwardProblem& problem, const Tensor& x) {
  if (problem.call.columns == 0 || problem.call.groups == 0) {
    return;
  }
  const CudaScope scope(x);
  if (problem.call.rows == 0) {
    return sum_parts(problem, scope);  // zeros
  }
  if (try_ring(problem, x, scope)) {
    return;
  }
  with_storage(problem.call.x_dtype,
               [&](auto storage) { launch_rows<decltype(storage)>(problem, x, scope); });
}

}  // namespace graft_kernels::rms_norm

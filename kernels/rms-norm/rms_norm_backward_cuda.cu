// RMSNorm's backward on CUDA: picks the kernel by row length, alignment and dtypes, and launches it
// on the current stream of x's device.

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rms-norm/rms_norm_backward_kernel.cuh"
#include "kernels/rms-norm/rms_norm_backward_ops.h"
#include "kernels/rms-norm/rms_norm_layout.h"
#include "kernels/rms-norm/rms_norm_weight_kernel.cuh"
#include "kernels/rms-norm/sm90_ring_backward.h"
#include "kernels/rms-norm/sm90_two_rows_backward.h"

namespace graft_kernels::rms_norm {

namespace {

bool is_vectorizable(const BackwardProblem& problem) {
  const int64_t x_bytes = bytes_of(problem.x_dtype);
  const bool mixed_out = problem.variant == Variant::kCastBeforeWeight;
  const int64_t out_bytes = mixed_out ? bytes_of(problem.weight_dtype) : x_bytes;
  return is_aligned(problem.x, problem.x_rows, x_bytes) &&
         is_aligned(problem.grad_x, problem.grad_x_rows, x_bytes) &&
         is_aligned(problem.grad_out, problem.grad_out_rows, out_bytes) &&
         (problem.grad_sum == nullptr ||
          is_aligned(problem.grad_sum, problem.grad_sum_rows, x_bytes)) &&
         reinterpret_cast<uintptr_t>(problem.weight) % 16 == 0 &&
         (problem.columns * x_bytes) % 16 == 0;
}

bool is_single_stride(const BackwardProblem& problem) {
  return problem.x_rows.num_dims == 1 && problem.grad_x_rows.num_dims == 1 &&
         problem.grad_out_rows.num_dims == 1 && problem.grad_sum_rows.num_dims == 1;
}

// Gives the problem its partial sums, which live as long as this does.
class Partial {
 public:
  Partial(BackwardProblem& problem, const Tensor& x, int64_t parts)
      : storage_(torch::stable::new_empty(x, {parts, problem.columns}, ScalarType::Float)) {
    problem.parts = parts;
    problem.partial = static_cast<float*>(storage_.mutable_data_ptr());
  }

 private:
  Tensor storage_;
};

struct Call {
  BackwardProblem& problem;
  const Tensor& x;
  const CudaScope& scope;
};

void launch_weight(const Call& call) {
  const BackwardProblem& problem = call.problem;
  launch_weight_sum({problem.partial, problem.parts, problem.columns, problem.grad_weight},
                    problem.weight_dtype, call.scope);
}

int64_t count_resident_threads(const Call& call) {
  return static_cast<int64_t>(call.scope.attribute(cudaDevAttrMultiProcessorCount)) *
         kBackwardThreads;
}

// Groups of kLanes lanes take a row each.
template <typename X, bool kAdd, int kLanes>
void launch_lanes(const Call& call) {
  constexpr int kThreads = 128;
  constexpr int64_t kRowsPerBlock = kThreads / kLanes;
  const int64_t turns = (call.problem.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const Partial partial(call.problem, call.x,
                        std::min(turns, count_resident_threads(call) / kThreads));
  rms_norm_bwd_rows_kernel<X, kAdd, kLanes, kThreads>
      <<<static_cast<unsigned>(call.problem.parts), kThreads, 0, call.scope.stream()>>>(
          call.problem);
  check_cuda(cudaGetLastError(), "rms_norm_bwd_rows_kernel");
  launch_weight(call);
}

// A block takes a row.
template <typename X, bool kAdd, int kMaxThreads>
void launch_block(const Call& call, int64_t vectors) {
  const int64_t threads = (vectors + kWarp - 1) / kWarp * kWarp;
  const Partial partial(call.problem, call.x,
                        std::min(call.problem.rows, count_resident_threads(call) / threads));
  rms_norm_bwd_rows_kernel<X, kAdd, 0, kMaxThreads>
      <<<static_cast<unsigned>(call.problem.parts), static_cast<unsigned>(threads), 0,
         call.scope.stream()>>>(call.problem);
  check_cuda(cudaGetLastError(), "rms_norm_bwd_rows_kernel");
  launch_weight(call);
}

// Launches the kernel that holds rows of this length on chip; false if none does.
template <typename X, bool kAdd>
bool try_on_chip(const Call& call) {
  const int64_t vectors = call.problem.columns / kVectorSize<X>;
  if (vectors <= 8) {
    launch_lanes<X, kAdd, 8>(call);
  } else if (vectors <= 16) {
    launch_lanes<X, kAdd, 16>(call);
  } else if (vectors <= 32) {
    launch_lanes<X, kAdd, 32>(call);
  } else if (vectors <= 512) {
    launch_block<X, kAdd, 512>(call, vectors);
  } else if (vectors <= 1024) {
    launch_block<X, kAdd, 1024>(call, vectors);
  } else {
    return false;
  }
  return true;
}

template <typename X, typename W, typename Out>
void launch_looping(const Call& call) {
  // Partial sums of at most 256 MB; long rows keep a multiprocessor busy with few blocks.
  constexpr int64_t kPartialElements = int64_t{1} << 26;
  const int64_t resident =
      static_cast<int64_t>(call.scope.attribute(cudaDevAttrMultiProcessorCount)) * 4;
  const int64_t affordable = std::max<int64_t>(kPartialElements / call.problem.columns, 1);
  const Partial partial(call.problem, call.x, std::min({call.problem.rows, resident, affordable}));
  const int64_t vectors = (call.problem.columns + kVectorSize<X> - 1) / kVectorSize<X>;
  const int threads = vectors <= 32 ? 32 : vectors <= 512 ? 128 : 512;
  const auto blocks = static_cast<unsigned>(call.problem.parts);
  if (is_vectorizable(call.problem)) {
    rms_norm_bwd_looping_kernel<X, W, Out, true>
        <<<blocks, threads, 0, call.scope.stream()>>>(call.problem);
  } else {
    rms_norm_bwd_looping_kernel<X, W, Out, false>
        <<<blocks, threads, 0, call.scope.stream()>>>(call.problem);
  }
  check_cuda(cudaGetLastError(), "rms_norm_bwd_looping_kernel");
  launch_weight(call);
}

// The same problem as the kernels of all norms know it.
FormBackwardProblem as_form(const BackwardProblem& problem) {
  FormBackwardProblem form;
  form.call.form = Form::kPlain;
  form.call.variant = problem.variant;
  form.call.x_dtype = problem.x_dtype;
  form.call.weight_dtype = problem.weight_dtype;
  form.call.eps = problem.eps;
  form.call.rows = problem.rows;
  form.call.columns = problem.columns;
  form.call.x = problem.x;
  form.call.x_rows = problem.x_rows;
  form.call.weight = problem.weight;
  form.grad_out = problem.grad_out;
  form.grad_out_rows = problem.grad_out_rows;
  form.grad_sum = problem.grad_sum;
  form.grad_sum_rows = problem.grad_sum_rows;
  form.grad_x = problem.grad_x;
  form.grad_x_rows = problem.grad_x_rows;
  return form;
}

// Rows through shared memory (Hopper); false where they are left to the other kernels.
bool try_ring(const Call& call) {
  FormBackwardProblem form = as_form(call.problem);
  Tensor partial;
  if (!is_vectorizable(call.problem) || !sm90::takes_rows(form.call, call.scope) ||
      !sm90::run_plain(form, call.x, call.scope, partial)) {
    return false;
  }
  call.problem.partial = form.partial;
  call.problem.parts = form.parts;
  launch_weight(call);
  return true;
}

// Two rows a turn (Hopper); false where they are left to the other kernels.
bool try_two_rows(const Call& call) {
  Tensor partial;
  if (!is_vectorizable(call.problem) || !is_single_stride(call.problem) ||
      !sm90::run_two_rows(call.problem, call.x, call.scope, partial)) {
    return false;
  }
  launch_weight(call);
  return true;
}

template <typename X>
void launch_one_dtype(const Call& call) {
  if (try_two_rows(call) || try_ring(call)) {
    return;
  }
  const bool fits = is_vectorizable(call.problem) && is_single_stride(call.problem);
  const bool adds = call.problem.grad_sum != nullptr;
  if (!fits || !(adds ? try_on_chip<X, true>(call) : try_on_chip<X, false>(call))) {
    launch_looping<X, X, X>(call);
  }
}

template <typename X>
void run_dtype(const Call& call) {
  if (call.problem.weight_dtype == call.problem.x_dtype) {
    launch_one_dtype<X>(call);
  } else if (call.problem.variant == Variant::kCastBeforeWeight) {
    launch_looping<X, float, float>(call);  // its output has the weight's dtype
  } else {
    launch_looping<X, float, X>(call);
  }
}

void run_backward_cuda(BackwardProblem& problem, const Tensor& x) {
  if (problem.columns == 0) {
    return;
  }
  const CudaScope scope(x);
  const Call call{problem, x, scope};
  if (problem.rows == 0) {
    launch_weight(call);  // zeros
    return;
  }
  switch (problem.x_dtype) {
    case Dtype::kFloat32:
      return run_dtype<float>(call);
    case Dtype::kBfloat16:
      return run_dtype<Bf16>(call);
    case Dtype::kFloat16:
      return run_dtype<Fp16>(call);
  }
}

}  // namespace

using CudaBackwardOps = BackwardOps<&run_backward_cuda>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::rms_norm::CudaBackwardOps::implement(ops); }

// The append of one token a row on CUDA: picks the vector width by alignment and launches on the current
// stream.

#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rotary/rotary_append_kernel.cuh"
#include "kernels/rotary/rotary_append_ops.h"
#include "kernels/rotary/rotary_layout.h"

namespace graft_kernels::rotary {

namespace {

template <bool kInterleaved, typename T, typename S, int kSize>
void launch(const AppendProblem& problem, const CudaScope& scope) {
  const Problem& base = problem.base;
  const int64_t num_heads = base.heads[0].count + base.heads[1].count;
  if (num_heads * base.head_dim * base.batch > INT32_MAX / 2) {
    fail("rotary_append_out", "query", "at most 2^30 elements",
         std::to_string(base.batch) + " of " + std::to_string(num_heads * base.head_dim));
  }
  AppendItems items;
  items.turned = static_cast<int>(num_heads * (base.rotary_dim / 2 / kSize));
  items.kept = static_cast<int>(num_heads * (base.head_dim - base.rotary_dim));
  items.values = static_cast<int>(base.heads[1].count * (base.head_dim / kSize));
  items.blocks = static_cast<unsigned>((items.all() + kAppendThreads - 1) / kAppendThreads);
  launch_overlapping(scope, rotary_append_kernel<kInterleaved, T, S, kSize>,
                     static_cast<unsigned>(base.batch) * items.blocks, kAppendThreads, 0, problem,
                     items);
}

template <typename T, typename S>
void launch_layout(const AppendProblem& problem, const CudaScope& scope) {
  if (problem.base.interleaved) {
    launch<true, T, S, 1>(problem, scope);
  } else if (is_vectorizable<T, S>(problem)) {
    launch<false, T, S, kVectorSize<T>>(problem, scope);
  } else {
    launch<false, T, S, 1>(problem, scope);
  }
}

void run_cuda(const AppendProblem& problem, const Tensor& query) {
  const Problem& base = problem.base;
  const int64_t num_heads = base.heads[0].count + base.heads[1].count;
  if (base.batch == 0 || num_heads * base.head_dim == 0) {
    return;
  }
  const CudaScope scope(query);
  switch (base.dtype) {
    case Dtype::kFloat32:
      return launch_layout<float, float>(problem, scope);
    case Dtype::kBfloat16:
      return base.float_tables ? launch_layout<Bf16, float>(problem, scope)
                               : launch_layout<Bf16, Bf16>(problem, scope);
    case Dtype::kFloat16:
      return base.float_tables ? launch_layout<Fp16, float>(problem, scope)
                               : launch_layout<Fp16, Fp16>(problem, scope);
  }
}

}  // namespace

using CudaAppendOps = AppendOps<&run_cuda>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::rotary::CudaAppendOps::implement(ops); }

// The append of one token a row on CUDA: picks the vector width by alignment and launches on the current
// stream.

#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rotary/rotary_append_kernel.cuh"
#include "kernels/rotary/rotary_append_ops.h"
#include "kernels/rotary/rotary_layout.h"

namespace graft_kernels::rotary {

namespace {

// Whole vectors of 16 bytes of heads, in both halves, of tables and of values?
template <typename T, typename S>
bool is_vectorizable(const AppendProblem& problem) {
  const Problem& base = problem.base;
  bool fits = !base.interleaved && base.rotary_dim / 2 % kVectorSize<T> == 0 &&
              base.head_dim % kVectorSize<T> == 0;
  for (const Heads& heads : base.heads) {
    fits = fits && is_aligned(heads.in, {heads.in_stride[0], heads.in_stride[2]}, sizeof(T)) &&
           is_aligned(heads.out, {heads.out_stride[0], heads.out_stride[2]}, sizeof(T));
  }
  return fits && problem.key_place_stride * sizeof(T) % 16 == 0 &&
         is_aligned(base.cos.data, {problem.table_stride[0]}, sizeof(S)) &&
         is_aligned(base.sin.data, {problem.table_stride[1]}, sizeof(S)) &&
         is_aligned(problem.value, {problem.value_stride[0], problem.value_stride[1]}, sizeof(T)) &&
         is_aligned(problem.values,
                    {problem.values_stride[0], problem.values_stride[1], problem.values_stride[2]},
                    sizeof(T));
}

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

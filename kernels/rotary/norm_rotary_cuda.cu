// RMSNorm of heads and their rotation on CUDA: picks the kernel by head size, alignment and dtypes, and launches it on
// the current stream.

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rotary/norm_rotary_kernel.cuh"
#include "kernels/rotary/norm_rotary_ops.h"
#include "kernels/rotary/norm_rotary_scalar_kernel.cuh"
#include "kernels/rotary/rotary_layout.h"

namespace graft_kernels::rotary {

namespace {

// Tokens from which on a block takes all heads of one; below, they are shared to fill the multiprocessors.
constexpr int64_t kManyTokens = 264;
constexpr int kSharedThreads = 128;

// Whole vectors everywhere, the norms' weights included?
template <typename T, typename S>
bool takes_vectors(const AppendProblem& problem) {
  const HeadNorm& norm = problem.base.norm;
  return is_vectorizable<T, S>(problem) && !norm.float_weights &&
         is_aligned(norm.weight[0], {}, sizeof(T)) && is_aligned(norm.weight[1], {}, sizeof(T));
}

template <bool kInterleaved, typename T, typename S, int kWidth, int kVectors>
void launch_vectors(const AppendProblem& problem, const CudaScope& scope) {
  const Problem& base = problem.base;
  const int64_t tokens = base.batch * base.length;
  const int64_t num_heads = base.heads[0].count + base.heads[1].count;
  NormParts parts;
  int64_t threads = kSharedThreads;
  if (tokens >= kManyTokens) {
    // As few threads as go through all heads in the fewest turns, in whole warps.
    constexpr int64_t kMost = kNormThreads / kWidth * kNormRows;
    const int64_t turns = (num_heads + kMost - 1) / kMost;
    const int64_t groups = (num_heads + turns * kNormRows - 1) / (turns * kNormRows);
    threads = (groups * kWidth + 31) / 32 * 32;
  } else {
    constexpr int64_t kGroups = kSharedThreads / kWidth;
    parts.heads = static_cast<int>(std::min<int64_t>((num_heads + kGroups - 1) / kGroups, 1 << 16));
  }
  if (problem.lengths != nullptr) {
    const int64_t items = base.heads[1].count * (base.head_dim / kVectorSize<T>);
    parts.values = static_cast<int>(std::min<int64_t>((items + threads - 1) / threads, 1 << 16));
  }
  if (tokens > INT32_MAX / parts.all()) {
    fail("norm_rotary", "query", "at most " + std::to_string(INT32_MAX / parts.all()) + " tokens",
         std::to_string(tokens));
  }
  launch_overlapping(scope, norm_rotary_kernel<kInterleaved, T, S, kWidth, kVectors>,
                     static_cast<unsigned>(tokens * parts.all()), static_cast<unsigned>(threads), 0,
                     problem, parts);
}

template <bool kInterleaved, typename T, typename S>
void launch_width(const AppendProblem& problem, const CudaScope& scope) {
  const int64_t vectors = problem.base.head_dim / kVectorSize<T>;
  if (vectors <= 8) {
    launch_vectors<kInterleaved, T, S, 8, 1>(problem, scope);
  } else if (vectors <= 16) {
    launch_vectors<kInterleaved, T, S, 16, 1>(problem, scope);
  } else if (vectors <= 32) {
    launch_vectors<kInterleaved, T, S, 32, 1>(problem, scope);
  } else {
    launch_vectors<kInterleaved, T, S, 32, 2>(problem, scope);
  }
}

template <typename T, typename S, typename W>
void launch_scalar(const AppendProblem& problem, const CudaScope& scope) {
  const Problem& base = problem.base;
  const int64_t num_heads =
      base.heads[0].count + base.heads[1].count * (problem.lengths != nullptr ? 2 : 1);
  const int64_t blocks = (base.batch * base.length * num_heads + kScalarWarps - 1) / kScalarWarps;
  launch_overlapping(scope, norm_rotary_scalar_kernel<T, S, W>,
                     static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX)),
                     kScalarWarps * rms_norm::kWarp, 0, problem);
}

template <typename T, typename S>
void launch(const AppendProblem& problem, const CudaScope& scope) {
  constexpr int64_t kMostVectors = 64;
  if (takes_vectors<T, S>(problem) && problem.base.head_dim / kVectorSize<T> <= kMostVectors) {
    problem.base.interleaved ? launch_width<true, T, S>(problem, scope)
                             : launch_width<false, T, S>(problem, scope);
  } else if (problem.base.norm.float_weights) {
    launch_scalar<T, S, float>(problem, scope);
  } else {
    launch_scalar<T, S, T>(problem, scope);
  }
}

void run_cuda(const AppendProblem& problem, const Tensor& query) {
  const Problem& base = problem.base;
  const int64_t num_heads = base.heads[0].count + base.heads[1].count;
  if (base.batch * base.length == 0 || num_heads * base.head_dim == 0) {
    return;
  }
  if (num_heads > INT32_MAX / 8 || base.head_dim > INT32_MAX / 8) {
    fail("norm_rotary", "query", "at most 2^28 heads and elements of a head",
         std::to_string(num_heads) + " heads of " + std::to_string(base.head_dim));
  }
  const CudaScope scope(query);
  switch (base.dtype) {
    case Dtype::kFloat32:
      return launch<float, float>(problem, scope);
    case Dtype::kBfloat16:
      return base.float_tables ? launch<Bf16, float>(problem, scope)
                               : launch<Bf16, Bf16>(problem, scope);
    case Dtype::kFloat16:
      return base.float_tables ? launch<Fp16, float>(problem, scope)
                               : launch<Fp16, Fp16>(problem, scope);
  }
}

void run_plain_cuda(const Problem& problem, const Tensor& query) {
  AppendProblem call;
  call.base = problem;
  run_cuda(call, query);
}

}  // namespace

using CudaNormOps = NormOps<&run_plain_cuda>;
using CudaNormAppendOps = NormAppendOps<&run_cuda>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(CUDA, ops) {
  graft_kernels::rotary::CudaNormOps::implement(ops);
  graft_kernels::rotary::CudaNormAppendOps::implement(ops);
}

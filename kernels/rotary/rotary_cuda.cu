// Rotary position embedding on CUDA: picks the vector width by alignment and launches on the current
// stream.

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rotary/rotary_kernel.cuh"
#include "kernels/rotary/rotary_layout.h"
#include "kernels/rotary/rotary_ops.h"
#include "kernels/rotary/rotary_vectors_kernel.cuh"

namespace graft_kernels::rotary {

namespace {

// Whole vectors of 16 bytes of heads in both halves, and the same elements of the tables?
template <typename T, typename S>
bool is_vectorizable(const Problem& problem) {
  bool fits = !problem.interleaved && problem.rotary_dim / 2 % kVectorSize<T> == 0;
  for (const Heads& heads : problem.heads) {
    fits = fits &&
           is_aligned(heads.in, {heads.in_stride[0], heads.in_stride[1], heads.in_stride[2]},
                      sizeof(T)) &&
           is_aligned(heads.out, {heads.out_stride[0], heads.out_stride[1], heads.out_stride[2]},
                      sizeof(T));
  }
  for (const Table& table : {problem.cos, problem.sin}) {
    fits = fits && is_aligned(table.data, {table.stride[0], table.stride[1]}, sizeof(S));
  }
  return fits;
}

template <bool kInterleaved, bool kInverse, typename T, typename S, int kSize>
void launch(const Problem& problem, cudaStream_t stream) {
  const int64_t tokens = problem.batch * problem.length;
  const int64_t lanes = problem.rotary_dim / 2 / kSize;
  const int64_t num_heads = problem.heads[0].count + problem.heads[1].count;
  if (tokens > INT32_MAX) {
    fail("rotary", "query", "at most 2^31 - 1 tokens", std::to_string(tokens));
  }
  if (lanes > kMaxThreads) {
    fail("rotary", "cos",
         "at most " + std::to_string(2 * kMaxThreads * kSize) + " rotated elements",
         std::to_string(problem.rotary_dim));
  }
  // As few threads as go through all heads in the fewest turns.
  const int64_t turns = (num_heads * lanes + kMaxThreads * kUnroll - 1) / (kMaxThreads * kUnroll);
  const int64_t rows = std::max<int64_t>((num_heads + turns * kUnroll - 1) / (turns * kUnroll), 1);
  const int64_t threads = std::min<int64_t>(rows, kMaxThreads / lanes) * lanes;
  rotary_kernel<kInterleaved, kInverse, T, S, kSize>
      <<<static_cast<unsigned>(tokens), static_cast<unsigned>(threads), 0, stream>>>(
          problem, static_cast<int>(lanes));
  check_cuda(cudaGetLastError(), "rotary_kernel");
}

// A head with kWidth lanes.
template <bool kInterleaved, bool kInverse, typename T, typename S, int kWidth>
void launch_width(const Problem& problem, cudaStream_t stream) {
  const int64_t num_heads = problem.heads[0].count + problem.heads[1].count;
  // As few threads as go through all heads in the fewest turns, in whole warps.
  constexpr int64_t kMost = kVectorThreads / kWidth * kVectorRows;
  const int64_t turns = (num_heads + kMost - 1) / kMost;
  const int64_t groups = (num_heads + turns * kVectorRows - 1) / (turns * kVectorRows);
  const int64_t threads = (groups * kWidth + 31) / 32 * 32;
  rotary_vectors_kernel<kInterleaved, kInverse, T, S, kWidth>
      <<<static_cast<unsigned>(problem.batch * problem.length), static_cast<unsigned>(threads), 0,
         stream>>>(problem);
  check_cuda(cudaGetLastError(), "rotary_vectors_kernel");
}

// Whole heads with the lanes of a warp; false where they are left to the other kernel.
template <bool kInterleaved, bool kInverse, typename T, typename S>
bool try_vectors(const Problem& problem, cudaStream_t stream) {
  AppendProblem call;
  call.base = problem;
  const int64_t vectors = problem.head_dim / kVectorSize<T>;
  const int64_t num_heads = problem.heads[0].count + problem.heads[1].count;
  if (!is_vectorizable<T, S>(call) || vectors > 32 || num_heads > INT32_MAX / 8 ||
      problem.batch * problem.length > INT32_MAX) {
    return false;
  }
  if (vectors <= 8) {
    launch_width<kInterleaved, kInverse, T, S, 8>(problem, stream);
  } else if (vectors <= 16) {
    launch_width<kInterleaved, kInverse, T, S, 16>(problem, stream);
  } else {
    launch_width<kInterleaved, kInverse, T, S, 32>(problem, stream);
  }
  return true;
}

template <bool kInverse, typename T, typename S>
void launch_layout(const Problem& problem, cudaStream_t stream) {
  if (problem.interleaved ? try_vectors<true, kInverse, T, S>(problem, stream)
                          : try_vectors<false, kInverse, T, S>(problem, stream)) {
    return;
  }
  if (problem.interleaved) {
    launch<true, kInverse, T, S, 1>(problem, stream);
  } else if (is_vectorizable<T, S>(problem)) {
    launch<false, kInverse, T, S, kVectorSize<T>>(problem, stream);
  } else {
    launch<false, kInverse, T, S, 1>(problem, stream);
  }
}

template <typename T, typename S>
void launch_dtype(const Problem& problem, cudaStream_t stream) {
  problem.inverse ? launch_layout<true, T, S>(problem, stream)
                  : launch_layout<false, T, S>(problem, stream);
}

void run_cuda(const Problem& problem, const Tensor& query) {
  const int64_t num_heads = problem.heads[0].count + problem.heads[1].count;
  if (problem.batch * problem.length == 0 || num_heads * problem.head_dim == 0) {
    return;
  }
  const CudaScope scope(query);
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_dtype<float, float>(problem, scope.stream());
    case Dtype::kBfloat16:
      return problem.float_tables ? launch_dtype<Bf16, float>(problem, scope.stream())
                                  : launch_dtype<Bf16, Bf16>(problem, scope.stream());
    case Dtype::kFloat16:
      return problem.float_tables ? launch_dtype<Fp16, float>(problem, scope.stream())
                                  : launch_dtype<Fp16, Fp16>(problem, scope.stream());
  }
}

}  // namespace

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::rotary::CudaOps::implement(ops); }

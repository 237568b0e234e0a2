// Before and after the gradients on Hopper: statistics of the rows and zeros to add to, and sums that
// become gradients of queries. Device code, no Torch.
#pragma once

#include "kernels/attention/sm90_attention_backward_kernel.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kPassThreads = 256;

// A tile of queries of one head; `row` of sums and statistics.
struct PassTask {
  Span span;
  int head;
  int64_t row;
};

template <int kD>
__device__ __forceinline__ PassTask pass_task(const BackwardCall& call) {
  constexpr int kTile = BackwardLayout<kD>::kTile;
  const Problem& base = call.problem.base;
  const int heads = static_cast<int>(base.key_heads * base.groups);
  const TrainTask task = train_task<kTile, false>(call.problem, call.packing, heads);
  const int64_t first = task.span.query / kTile + task.span.sequence;
  return {task.span, task.head,
          (static_cast<int64_t>(task.span.batch) * heads + task.head) * call.query_tiles + first +
              task.span.tile};
}

template <typename T>
__device__ __forceinline__ float multiply_words(uint32_t a, uint32_t b) {
  const T* left = reinterpret_cast<const T*>(&a);
  const T* right = reinterpret_cast<const T*>(&b);
  return fmaf(to_float(left[0]), to_float(right[0]), to_float(left[1]) * to_float(right[1]));
}

// delta: rowsum(grad_out * out); lse times log2(e), infinity where a row has no weights or is none.
template <typename T, int kD>
__global__ void __launch_bounds__(kPassThreads)
    attention_bwd_prepare_kernel(const __grid_constant__ BackwardCall call) {
  using L = BackwardLayout<kD>;
  constexpr int kLanes = kD / 8, kRows = kPassThreads / kLanes;
  const PassTask task = pass_task<kD>(call);
  const Span& span = task.span;
  const int first = span.tile * L::kTile;
  if (!span.exists || first >= span.queries) {
    return;
  }
  const TrainProblem& problem = call.problem;
  const Problem& base = problem.base;
  float4* sums = reinterpret_cast<float4*>(call.query_sums + task.row * 2 * L::kSumFloats);
#pragma unroll
  for (int index = 0; index < 2 * L::kSumFloats / 4 / kPassThreads; ++index) {
    sums[index * kPassThreads + threadIdx.x] = {0.0F, 0.0F, 0.0F, 0.0F};
  }
  if (call.turns != nullptr && threadIdx.x < 2) {
    call.turns[task.row * 2 + threadIdx.x] = 0;
  }
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int row = threadIdx.x / kLanes; row < L::kTile; row += kRows) {
    const int query = first + row;
    float sum = 0.0F, lse = INFINITY;
    if (query < span.queries) {
      const int64_t at = span.query + query;
      const uint4 out = reinterpret_cast<const uint4*>(
          place_in<const T>(base.out, base.out_stride, span.batch, at, task.head))[lane];
      const uint4 grad = reinterpret_cast<const uint4*>(place_in<const T>(
          problem.grad_out, problem.grad_out_stride, span.batch, at, task.head))[lane];
      sum = (multiply_words<T>(out.x, grad.x) + multiply_words<T>(out.y, grad.y)) +
            (multiply_words<T>(out.z, grad.z) + multiply_words<T>(out.w, grad.w));
      lse = *statistic_of(problem, problem.lse, span.batch, task.head, at);
      lse = lse == -INFINITY ? INFINITY : lse * kLog2Of;
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
    }
    if (lane == 0) {
      call.lse[task.row * L::kTile + row] = lse;
      call.delta[task.row * L::kTile + row] = lse == INFINITY ? 0.0F : sum;
    }
  }
}

template <typename T, int kD>
__global__ void __launch_bounds__(kPassThreads)
    attention_bwd_finish_kernel(const __grid_constant__ BackwardCall call) {
  using L = BackwardLayout<kD>;
  constexpr int kPitch = kD + 8;
  __shared__ __align__(16) T tile[L::kTile * kPitch];
  const PassTask task = pass_task<kD>(call);
  const Span& span = task.span;
  const int first = span.tile * L::kTile;
  if (!span.exists || first >= span.queries) {
    return;
  }
  const TrainProblem& problem = call.problem;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const float4* sums =
      reinterpret_cast<const float4*>(call.query_sums + (task.row * 2 + group) * L::kSumFloats) +
      threadIdx.x % 128;
  const int row = warp * 16 + lane / 4 + (kD == 64 ? group * 64 : 0);
  T* to = tile + row * kPitch + lane % 4 * 2 + (kD == 64 ? 0 : group * 64);
  const float scale = problem.base.scale;
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const float4 sum = sums[index * 128];
    *reinterpret_cast<uint32_t*>(to + index * 8) = pack<T>(sum.x * scale, sum.y * scale);
    *reinterpret_cast<uint32_t*>(to + index * 8 + 8 * kPitch) =
        pack<T>(sum.z * scale, sum.w * scale);
  }
  __syncthreads();
  constexpr int kChunks = kD / 8;
#pragma unroll
  for (int index = threadIdx.x; index < L::kTile * kChunks; index += kPassThreads) {
    const int own = index / kChunks, chunk = index % kChunks;
    if (first + own < span.queries) {
      T* row_to = place_in<T>(problem.grad_query, problem.grad_query_stride, span.batch,
                              span.query + first + own, task.head);
      reinterpret_cast<uint4*>(row_to)[chunk] =
          *reinterpret_cast<const uint4*>(tile + own * kPitch + chunk * 8);
    }
  }
}

}  // namespace graft_kernels::attention::sm90

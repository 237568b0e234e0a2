// Launches the gradients of attention on Hopper: statistics, the gradients of keys and values with the sums
// for those of queries, and their rounding.

#include <algorithm>
#include <cstdint>

#include "kernels/attention/sm90_attention_backward.h"
#include "kernels/attention/sm90_attention_backward_passes.cuh"
#include "kernels/attention/sm90_attention_backward_work.cuh"
#include "kernels/attention/sm90_tensor_map.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

template <typename T, int kD>
void launch(const BackwardCall& call, cudaStream_t stream) {
  using L = sm90::BackwardLayout<kD>;
  const TrainProblem& problem = call.problem;
  const Problem& base = problem.base;
  const CUtensorMap query_map =
      sm90::describe_queries(base, base.query, base.query_stride, L::kTile);
  const CUtensorMap grad_map =
      sm90::describe_queries(base, problem.grad_out, problem.grad_out_stride, L::kTile);
  const CUtensorMap key_map = sm90::describe_keys(base, base.key, base.key_stride, kBackwardKeys);
  const CUtensorMap value_map =
      sm90::describe_keys(base, base.value, base.value_stride, kBackwardKeys);
  const unsigned passes = static_cast<unsigned>(call.tiles());
  sm90::attention_bwd_prepare_kernel<T, kD><<<passes, sm90::kPassThreads, 0, stream>>>(call);
  check_cuda(cudaGetLastError(), "attention_bwd_prepare_kernel");
  const auto kernel = call.packing.queries == nullptr
                          ? sm90::attention_bwd_sm90_kernel<T, kD, false>
                          : sm90::attention_bwd_sm90_kernel<T, kD, true>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes),
             "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(base.batch * base.key_heads * call.key_tiles),
           sm90::kBackwardThreads, L::kBytes, stream>>>(query_map, grad_map, key_map, value_map,
                                                        call);
  check_cuda(cudaGetLastError(), "attention_bwd_sm90_kernel");
  sm90::attention_bwd_finish_kernel<T, kD><<<passes, sm90::kPassThreads, 0, stream>>>(call);
  check_cuda(cudaGetLastError(), "attention_bwd_finish_kernel");
}

}  // namespace

const char* why_not_sm90_backward(const TrainProblem& problem, int compute_capability) {
  const Problem& base = problem.base;
  if (compute_capability != 90) {
    return "needs compute capability 9.0";
  }
  if (base.dtype == Dtype::kFloat32 || (base.head_dim != 64 && base.head_dim != 128)) {
    return "16-bit heads of 64 or 128 alone";
  }
  if (base.blocks() == 0 || base.keys == 0) {
    return "nothing to multiply";
  }
  if (base.mask != nullptr || base.softcap > 0.0F || !(base.scale > 0.0F)) {
    return "no mask or soft cap, and a positive scale";
  }
  const BackwardCall call = sm90_backward_call(problem, {}, 1);
  if (call.tiles() > INT32_MAX / 2 ||
      base.batch * base.key_heads * call.key_tiles > INT32_MAX / 2) {
    return "too many tiles";
  }
  const bool whole = sm90::is_whole_vectors(base.query, base.query_stride) &&
                     sm90::is_whole_vectors(base.key, base.key_stride) &&
                     sm90::is_whole_vectors(base.value, base.value_stride) &&
                     sm90::is_whole_vectors(base.out, base.out_stride) &&
                     sm90::is_whole_vectors(problem.grad_out, problem.grad_out_stride) &&
                     sm90::is_whole_vectors(problem.grad_query, problem.grad_query_stride) &&
                     sm90::is_whole_vectors(problem.grad_key, problem.grad_key_stride) &&
                     sm90::is_whole_vectors(problem.grad_value, problem.grad_value_stride);
  return whole ? "" : "rows off 16 bytes";
}

BackwardCall sm90_backward_call(const TrainProblem& problem, const Packing& packing,
                                int processors) {
  const Problem& base = problem.base;
  const int64_t tile = backward_query_tile(base.head_dim);
  const bool dense = packing.queries == nullptr;
  BackwardCall call;
  call.problem = problem;
  call.packing = packing;
  call.query_tiles = static_cast<int32_t>(dense ? (base.queries + tile - 1) / tile
                                                : base.queries / tile + packing.sequences);
  call.key_tiles = static_cast<int32_t>(dense ? (base.keys + kBackwardKeys - 1) / kBackwardKeys
                                              : base.keys / kBackwardKeys + packing.sequences);
  // As many as have all their tiles of keys in work together: more share L2 worse, fewer leave the longest tasks
  // of each head to the end.
  call.heads_together =
      static_cast<int32_t>(std::clamp<int64_t>(processors / std::max<int64_t>(call.key_tiles, 1), 1,
                                               std::max<int64_t>(base.batch * base.key_heads, 1)));
  call.down = base.causal;
  return call;
}

void run_sm90_backward(const BackwardCall& call, CUstream_st* stream) {
  const bool is_bfloat16 = call.problem.base.dtype == Dtype::kBfloat16;
  if (call.problem.base.head_dim == 64) {
    is_bfloat16 ? launch<Bf16, 64>(call, stream) : launch<Fp16, 64>(call, stream);
  } else {
    is_bfloat16 ? launch<Bf16, 128>(call, stream) : launch<Fp16, 128>(call, stream);
  }
}

}  // namespace graft_kernels::attention

// The computing warpgroups of the gradients on Hopper, and the kernel. Device code, no Torch.
#pragma once

#include "kernels/attention/sm90_attention_backward_tile.cuh"

namespace graft_kernels::attention::sm90 {

// One warpgroup's 64 keys against all tiles of queries of a task. What is written for the copy engine and for products is
// published by those who start them, behind a barrier, instead of by those who wrote: these would wait for their writes.
// A fence between proxies anywhere on the path from the write to the read links them (PTX ISA, memory consistency model,
// proxy-preserved base causality order).
template <typename T, int kD, bool kPacked>
struct BackwardWork {
  using L = BackwardLayout<kD>;
  static constexpr int kTile = L::kTile;
  // Products with an operand in registers hold their warps until it is read. Written before them, slopes are there when
  // the next ones could begin; short heads have the registers for it.
  static constexpr bool kStoredFirst = kD == 64;
  const BackwardCall& call;
  const BackwardTask& task;
  unsigned char* shared;
  BackwardBarriers& barriers;
  int group;

  // Rows of the last tile of a packed sequence that are not its own.
  __device__ __forceinline__ void clear_tail(int ring, const Walk& walk) const {
    if constexpr (kPacked) {
      const int left = task.span.queries - walk.tile * kTile;
      if (left < kTile) {
        clear_rows<L::kBoxes>(shared + ring + walk.slot * L::kQueryBytes, L::kQueryBox, left,
                              kTile);
      }
    }
  }

  __device__ __forceinline__ void wait_keys() const {
    wait(&barriers.keys, 0);
    wait(&barriers.values, 0);
    if constexpr (kPacked) {
      const int left = task.span.keys - task.first_key;
      if (left < kBackwardKeys) {
        clear_rows<L::kBoxes>(shared + L::kKeys, L::kKeyBox, left, kBackwardKeys);
        clear_rows<L::kBoxes>(shared + L::kValues, L::kKeyBox, left, kBackwardKeys);
      }
    }
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kTile / 2], const Walk& walk) const {
    wait(&barriers.queries[walk.slot], walk.phase);
    clear_tail(L::kQueries, walk);
    forget_registers(scores);
    fence_products();
    start_turned<T, kD>(scores, shared + L::kKeys + group * 64 * 128,
                        shared + L::kQueries + walk.slot * L::kQueryBytes);
    commit_products();
  }

  __device__ __forceinline__ void start_grads(float (&grads)[kTile / 2], const Walk& walk) const {
    wait(&barriers.grads[walk.slot], walk.phase);
    clear_tail(L::kGrads, walk);
    forget_registers(grads);
    fence_products();
    start_turned<T, kD>(grads, shared + L::kValues + group * 64 * 128,
                        shared + L::kGrads + walk.slot * L::kQueryBytes);
    commit_products();
  }

  // In the order of the registers; the pass after the kernel knows it.
  __device__ __forceinline__ void hand_over(const float (&sum)[32]) const {
    sync_named(kSumsFree + group, 160);
    float4* to = reinterpret_cast<float4*>(shared + L::kSums) + group * L::kSumFloats / 4 +
                 threadIdx.x % 128;
#pragma unroll
    for (int index = 0; index < 8; ++index) {
      to[index * 128] = {sum[index * 4], sum[index * 4 + 1], sum[index * 4 + 2],
                         sum[index * 4 + 3]};
    }
    arrive_named(kSumsWritten + group, 160);
  }

  __device__ __forceinline__ void store_tile(const float (&grads)[kTile / 2],
                                             uint32_t (&slopes)[kTile / 16][4],
                                             const Walk& walk) const {
    round_operand<T>(grads, slopes);
    store_slopes(shared + L::kSlopes + walk.slot * L::kSlopeBytes + group * L::kSlopeBox, slopes);
  }

  // Weights' gradients into registers and shared memory, and the products for values started.
  __device__ __forceinline__ void weigh_tile(float (&scores)[kTile / 2], float (&grads)[kTile / 2],
                                             float (&value_sum)[kD / 2],
                                             uint32_t (&slopes)[kTile / 16][4],
                                             const KeySight& sight, const Walk& walk) const {
    const TrainProblem& problem = call.problem;
    const int query = walk.tile * kTile;
    if (!all_seen(problem, task, group, query, kTile)) {
      hide_pairs(scores, sight, query);
    }
    weigh(scores, reinterpret_cast<const float*>(shared + L::kLse + walk.slot * L::kStatBytes),
          problem.base.scale * kLog2Of, kStoredFirst ? &barriers.order : nullptr);
    wait_products<0>();
    fence_registers(grads);
    slope(scores, reinterpret_cast<const float*>(shared + L::kDelta + walk.slot * L::kStatBytes),
          grads);
    if constexpr (kStoredFirst) {
      store_tile(grads, slopes, walk);
    }
    uint32_t weights[kTile / 16][4];
    round_operand<T>(scores, weights);
    fence_registers(weights);
    fence_registers(value_sum);
    fence_products();
    start_sums<T, kD>(value_sum, weights, shared + L::kGrads + walk.slot * L::kQueryBytes);
    commit_products();
    if constexpr (!kStoredFirst) {
      store_tile(grads, slopes, walk);
    }
    sync_named(kSlopesWritten, 256);
    publish_shared();
  }

  __device__ __forceinline__ void walk_queries(float (&key_sum)[kD / 2], float (&value_sum)[kD / 2],
                                               int steps) const {
    const KeySight sight = key_sight(call.problem, task, group);
    float scores[kTile / 2], grads[kTile / 2], query_sum[32];
    Walk walk(task);
    start_scores(scores, walk);
    wait_products<0>();
    fence_registers(scores);
    for (int step = 1;; ++step) {
      const int slot = walk.slot;
      start_grads(grads, walk);
      uint32_t slopes[kTile / 16][4];
      weigh_tile(scores, grads, value_sum, slopes, sight, walk);
      forget_registers(query_sum);
      fence_registers(slopes);
      fence_registers(key_sum);
      fence_products();
      start_queries<T, kD>(query_sum, shared + L::kSlopes + slot * L::kSlopeBytes,
                           shared + L::kKeys, group);
      commit_products();
      start_sums<T, kD>(key_sum, slopes, shared + L::kQueries + slot * L::kQueryBytes);
      commit_products();
      wait_products<1>();
      fence_registers(value_sum);
      fence_registers(query_sum);
      arrive(&barriers.grads_free[slot]);
      hand_over(query_sum);
      if (step == steps) {
        break;
      }
      walk.step(task);
      start_scores(scores, walk);
      wait_products<0>();
      fence_registers(scores);
      fence_registers(key_sum);
      arrive(&barriers.queries_free[slot]);
    }
    wait_products<0>();
    fence_registers(key_sum);
  }

  __device__ __forceinline__ void run() const {
    const TrainProblem& problem = call.problem;
    const int steps = (task.end - task.begin) * static_cast<int>(problem.base.groups);
    float key_sum[kD / 2] = {}, value_sum[kD / 2] = {};
    wait_keys();
    fence_registers(key_sum);
    fence_registers(value_sum);
    if (steps > 0) {
      walk_queries(key_sum, value_sum, steps);
    }
    sync_named(kSlopesWritten, 256);  // the other warpgroup reads all keys
    store_rows<T, kD>(shared + L::kKeys + group * 64 * 128, key_sum, problem.base.scale,
                      problem.grad_key, problem.grad_key_stride, task, group);
    store_rows<T, kD>(shared + L::kValues + group * 64 * 128, value_sum, 1.0F, problem.grad_value,
                      problem.grad_value_stride, task, group);
  }
};

// kPacked: packed sequences, whose tiles have other sequences' rows in them. An instance of its own, since all of it
// would stand in the loop.
template <typename T, int kD, bool kPacked>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    attention_bwd_sm90_kernel(const __grid_constant__ CUtensorMap query_map,
                              const __grid_constant__ CUtensorMap grad_map,
                              const __grid_constant__ CUtensorMap key_map,
                              const __grid_constant__ CUtensorMap value_map,
                              const __grid_constant__ BackwardCall call) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ BackwardBarriers barriers;
  // Swizzled tiles start at multiples of 1024 bytes.
  unsigned char* shared = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  const BackwardTask task = backward_task<kD, kPacked>(call);
  if (!task.span.exists || task.first_key >= task.span.keys) {
    return;
  }
  if (threadIdx.x == 0) {
    init_barrier(&barriers.keys, 1);
    init_barrier(&barriers.values, 1);
    init_barrier(&barriers.order, 256);
    for (int stage = 0; stage < kBackwardStages; ++stage) {
      init_barrier(&barriers.queries[stage], 1);
      init_barrier(&barriers.grads[stage], 1);
      init_barrier(&barriers.queries_free[stage], 256);
      init_barrier(&barriers.grads_free[stage], 256);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  // The same in all of a warp, which the compiler must know where products are started.
  const int group = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      if (threadIdx.x == 0) {
        bring_tiles<kD>(call, task, &query_map, &grad_map, &key_map, &value_map, shared, barriers);
      }
    } else if (warp < 3) {
      take_sums<kD>(call, task, warp - 1, shared);
    }
  } else {
    take_registers<240>();
    BackwardWork<T, kD, kPacked>{call, task, shared, barriers, group - 1}.run();
  }
#endif
}

}  // namespace graft_kernels::attention::sm90

// Sums over the blocks of a cluster that share a row, for the kernels whose rows come through shared memory. Device
// code, no Torch.
#pragma once

#include "kernels/common/sm90_barriers.cuh"
#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm::sm90 {

using namespace graft_kernels::sm90;  // NOLINT(google-build-using-namespace): the same vocabulary

inline constexpr int kRingThreads = 512;
inline constexpr int kMaxStages = 8;
inline constexpr int kMaxRingCluster = 16;
inline constexpr int kRingSums = 3;

// How a launcher cuts rows: a cluster of blocks takes a row, `slice` vectors each; `stages` rows are on their way.
struct RingShape {
  int cluster = 1;
  int stages = 2;
  int slice = 0;
};

// What the sums need of shared memory.
struct RingSumScratch {
  uint64_t exchanged[2];  // barriers of the cluster's sums
  float of_warps[2][kRingSums][kWarp / 2];
  float of_peers[2][kMaxRingCluster][kRingSums];
};
template <int kStages>
struct RingScratch : RingSumScratch {
  uint64_t full[kStages];  // barriers of what comes
};

// Sums over the block, then over the cluster. Calls in turn use different halves of the scratch memory, so that one
// barrier of the block a call is enough and the cluster needs none: each block waits for its peers' numbers alone.
class RingSum {
 public:
  __device__ RingSum(RingSumScratch& scratch, int cluster)
      : scratch_(scratch), cluster_(cluster), rank_(cluster > 1 ? rank_in_cluster() : 0) {}

  __device__ int rank() const { return rank_; }

  // Every thread calls it and gets the sums. `after_barrier()` runs where all threads are past their last call.
  template <int kCount, typename AfterBarrier>
  __device__ __forceinline__ void operator()(float (&values)[kCount],
                                             const AfterBarrier& after_barrier) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    const int num_warps = static_cast<int>(blockDim.x) / kWarp;
    float(&own)[kRingSums][kWarp / 2] = scratch_.of_warps[turn_];
    // The first two sums share the exchanges: half a warp goes on with one each.
    const bool lower = lane < kWarp / 2;
    if constexpr (kCount >= 2) {
      const float pair = sum_pair_halves(make_float2(values[0], values[1]));
      if (lane % (kWarp / 2) == 0) {
        own[lower ? 0 : 1][warp] = pair;
      }
    }
    if constexpr (kCount % 2 == 1) {
      const float single = sum_over_warp(values[kCount - 1]);
      if (lane == 0) {
        own[kCount - 1][warp] = single;
      }
    }
    __syncthreads();
    after_barrier();
    const int from = lane % (kWarp / 2);
    if constexpr (kCount >= 2) {
      const float pair =
          sum_over_lanes<kWarp / 2>(from < num_warps ? own[lower ? 0 : 1][from] : 0.0F);
      values[0] = __shfl_sync(0xffffffffU, pair, 0);
      values[1] = __shfl_sync(0xffffffffU, pair, kWarp / 2);
    }
    if constexpr (kCount % 2 == 1) {
      values[kCount - 1] =
          sum_over_lanes<kWarp / 2>(from < num_warps ? own[kCount - 1][from] : 0.0F);
    }
    if (cluster_ > 1) {
      exchange(values);
    }
    turn_ ^= 1;
    phase_ ^= turn_ == 0 ? 1 : 0;
  }

 private:
  // Every block sends its sums to all, itself included, and adds them in rank order.
  template <int kCount>
  __device__ __forceinline__ void exchange(float (&values)[kCount]) {
    uint64_t* barrier = &scratch_.exchanged[turn_];
    float(&peers)[kMaxRingCluster][kRingSums] = scratch_.of_peers[turn_];
    if (threadIdx.x == 0) {
      arrive_expecting(barrier, cluster_ * kCount * static_cast<int>(sizeof(float)));
    }
    if (static_cast<int>(threadIdx.x) < cluster_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        store_and_complete(&peers[rank_][i], barrier, threadIdx.x, values[i]);
      }
    }
    wait_for_peers(barrier, phase_);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = 0;
    }
    for (int peer = 0; peer < cluster_; ++peer) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] += peers[peer][i];
      }
    }
  }

  RingSumScratch& scratch_;
  int cluster_;
  int rank_;
  int turn_ = 0;
  int phase_ = 0;
};

// Barriers ready for copies and, in a cluster, for peers.
template <int kStages>
__device__ __forceinline__ void init_ring(RingScratch<kStages>& scratch, int stages, int cluster) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      init_barrier(&scratch.full[stage], 1);
    }
    init_barrier(&scratch.exchanged[0], 1);
    init_barrier(&scratch.exchanged[1], 1);
    fence_barrier_inits();
  }
  if (cluster > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
}

}  // namespace graft_kernels::rms_norm::sm90

// Long rows that train, on Hopper: the blocks of a cluster take a share of a row each, small enough for three of them to
// have their logits in one processor's shared memory, so that one row is read while others are written. Device code, no
// Torch; empty before sm_90. NOTE: PTX ISA 7.8, "mapa", "ld.shared::cluster" and "barrier.cluster".
#pragma once

#include "kernels/loss/loss_kernel.cuh"

namespace graft_kernels::loss {

inline constexpr int kClusterThreads = 320;
inline constexpr int kBlocksPerProcessor = 3;
// The largest cluster that every Hopper device launches.
inline constexpr int kMaxCluster = 8;
// Logits that a block keeps: three blocks, their sums and what the runtime takes fit into 228 KiB.
inline constexpr int kClusterBytes = 70 * 1024;

__device__ __forceinline__ float load_of_peer(const float* own, unsigned rank) {
  float value = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .u32 place;\n"
      "mapa.shared::cluster.u32 place, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [place];\n"
      "}\n"
      : "=f"(value)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(own))), "r"(rank)
      : "memory");
#endif
  return value;
}

// Every thread of every block arrives.
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

struct ClusterRow {
  int own_rank, num_blocks;

  __device__ __forceinline__ int rank() const { return own_rank; }
  __device__ __forceinline__ int count() const { return num_blocks; }
  // Sums of all blocks in the order of their ranks, the same bits in every thread.
  __device__ __forceinline__ Online join(Online own, float* plain) const {
    __shared__ float sums[3];
    if (threadIdx.x == 0) {
      sums[0] = own.top;
      sums[1] = own.sum;
      sums[2] = *plain;
    }
    arrive_at_cluster();
    wait_for_cluster();
    Online whole{-INFINITY, 0.0F};
    *plain = 0;
    for (int peer = 0; peer < num_blocks; ++peer) {
      whole = merge(whole, {load_of_peer(&sums[0], peer), load_of_peer(&sums[1], peer)});
      *plain += load_of_peer(&sums[2], peer);
    }
    arrive_at_cluster();
    return whole;
  }
  // A block's sums stay until its peers have read them.
  __device__ __forceinline__ void leave() const { wait_for_cluster(); }
};

template <typename T, int kSize>
__global__ void __launch_bounds__(kClusterThreads, kBlocksPerProcessor)
    cross_entropy_cluster_kernel(const Problem problem, const int cached, const int cluster) {
#if __CUDA_ARCH__ >= 900
  const int rank = static_cast<int>(blockIdx.x % cluster);
  compute_row<T, kSize, Mode::kTrain>(problem, blockIdx.x / cluster, cached,
                                      ClusterRow{rank, cluster});
#endif
}

}  // namespace graft_kernels::loss

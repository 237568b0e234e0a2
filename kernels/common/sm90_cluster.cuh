// Two blocks of a cluster that share what they copy (sm_90 and later): copies into both, barriers of the other
// block, and their meeting. Device code, no Torch.
#pragma once

#include "kernels/common/sm90_wgmma.cuh"

namespace graft_kernels::sm90 {

__device__ __forceinline__ int rank_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads of all blocks of the cluster.
__device__ __forceinline__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// Makes this thread's inits of barriers visible to copies and to the cluster.
__device__ __forceinline__ void fence_barrier_inits() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives at the barrier that lies at the same place in block `rank` of the cluster.
__device__ __forceinline__ void arrive_at(uint64_t* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// A box of the matrix at the given place; what lies beyond its ends is zeros.
__device__ __forceinline__ void copy_matrix_box(void* to, const CUtensorMap* map, uint64_t* barrier,
                                                int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same into the same place of every block that has a bit in `blocks`, announced at each one's barrier.
__device__ __forceinline__ void copy_matrix_box_to_all(void* to, const CUtensorMap* map,
                                                       uint64_t* barrier, int column, int row,
                                                       uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "h"(blocks), "r"(column), "r"(row)
      : "memory");
}

}  // namespace graft_kernels::sm90

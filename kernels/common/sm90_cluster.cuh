// Blocks of a cluster that share what they copy (sm_90 and later). Device code, no Torch.
#pragma once

#include "kernels/common/sm90_wgmma.cuh"

namespace graft_kernels::sm90 {

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

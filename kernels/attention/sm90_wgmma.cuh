// Copies of attention's tensors by Hopper's copy engine; barriers and products are everybody's. Device code, no Torch.
#pragma once

#include "kernels/common/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

using namespace graft_kernels::sm90;  // NOLINT(google-build-using-namespace): the same vocabulary

// A box of the tensor [batch, head, row, column] at the given place; rows beyond its end are zeros.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* barrier,
                                         int column, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

}  // namespace graft_kernels::attention::sm90

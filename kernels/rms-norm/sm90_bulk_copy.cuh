// Hopper's bulk copies into shared memory, the barriers that they complete, and stores into peers of a cluster.
// Device code, no Torch; empty before sm_90.
// NOTE: PTX ISA 8.0, "mbarrier", "cp.async.bulk" and "st.async".
#pragma once

#include <cstdint>

namespace graft_kernels::rms_norm::sm90 {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
#endif
}
// Makes the inits of this thread visible to copies and to the cluster.
__device__ __forceinline__ void fence_barrier_inits() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One arrival, and `bytes` to wait for.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}

// Waits for copies of this block.
__device__ __forceinline__ void wait(uint64_t* barrier, int phase) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
#endif
}
// Waits for stores of peers. NOTE: what the wider scope costs is not for every row of a block.
__device__ __forceinline__ void wait_for_peers(uint64_t* barrier, int phase) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
#endif
}

// Multiples of 16 bytes between addresses that are multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, unsigned bytes,
                                          uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}

// Orders this thread's stores to shared memory before copies into it that are issued after a barrier.
__device__ __forceinline__ void fence_before_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Stores into the same variable of block `peer` of the cluster and completes four bytes of its barrier.
__device__ __forceinline__ void store_and_complete(float* shared, uint64_t* barrier, unsigned peer,
                                                   float value) {
#if __CUDA_ARCH__ >= 900
  uint32_t remote, remote_barrier;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(shared_address(shared)), "r"(peer));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote_barrier)
               : "r"(shared_address(barrier)), "r"(peer));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(remote),
      "f"(value), "r"(remote_barrier)
      : "memory");
#endif
}

}  // namespace graft_kernels::rms_norm::sm90

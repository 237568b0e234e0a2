// How long L2 keeps what a load or copy brings. Device code, no Torch.
//
// What is read once displaces lines that others wrote, which the memory then has to take in small pieces between the
// reads. Measured on one H200 with L2 full of such lines (docs/benchmarks.md, linear): weights of a few times L2 are read
// fastest as the first to go, far larger ones without a priority of their own.
#pragma once

#include <cstdint>

namespace graft_kernels {

inline constexpr int64_t kSmallWeightBytes = int64_t{8} << 20;    // several stay in L2
inline constexpr int64_t kLargeWeightBytes = int64_t{192} << 20;  // far beyond L2

#if defined(__CUDACC__)
__device__ __forceinline__ uint64_t keep_normally() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t let_go_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t leave_unchanged() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#endif

}  // namespace graft_kernels

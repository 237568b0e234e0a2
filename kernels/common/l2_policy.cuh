// How long L2 keeps what a copy brings. Device code, no Torch.
//
// What is read once displaces lines that others wrote, which the memory then has to take in small pieces between the
// reads; copies of weights of up to a few times L2 are faster as the first to go (docs/benchmarks.md, linear). NOTE: a
// load with the normal priority named is not one without: plain loads of weights lose by either.
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
#endif

}  // namespace graft_kernels

// The ceiling of memory-bound ops: a vectorised copy kernel (a captured memcpy node is a third
// slower).

#include <cstdint>

#include <cuda_runtime.h>

namespace graft_kernels::testing {

namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

__global__ void __launch_bounds__(kThreads)
    copy_kernel(uint4* to, const uint4* from, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kUnroll + threadIdx.x;
  uint4 values[kUnroll];
#pragma unroll
  for (int step = 0; step < kUnroll; ++step) {
    if (first + step * kThreads < count) {
      values[step] = from[first + step * kThreads];
    }
  }
#pragma unroll
  for (int step = 0; step < kUnroll; ++step) {
    if (first + step * kThreads < count) {
      to[first + step * kThreads] = values[step];
    }
  }
}

__global__ void empty_kernel() {}

}  // namespace

// Copies `bytes` (a multiple of 16) on `stream`.
void launch_copy(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  const int64_t count = bytes / 16;
  const int64_t blocks = (count + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  copy_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      static_cast<uint4*>(to), static_cast<const uint4*>(from), count);
}

void launch_empty(cudaStream_t stream) { empty_kernel<<<1, 32, 0, stream>>>(); }

}  // namespace graft_kernels::testing

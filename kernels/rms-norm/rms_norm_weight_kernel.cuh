// The gradient of a weight, or of a bias: the sum of its parts. Included by launchers alone.
#pragma once

#include "kernels/common/cuda_launch.h"
#include "kernels/common/overlap.cuh"
#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm {

// Columns of a block, and the turns that its threads take with the parts.
inline constexpr int kWeightColumns = 32;
inline constexpr int kWeightTurns = 32;

struct WeightSum {
  const float* partial = nullptr;  // [parts, columns]
  int64_t parts = 0;
  int64_t columns = 0;
  void* gradient = nullptr;  // [columns]
};

template <typename W>
__global__ void __launch_bounds__(kWeightColumns* kWeightTurns)
    rms_norm_bwd_weight_kernel(const __grid_constant__ WeightSum problem) {
  __shared__ float sums[kWeightTurns][kWeightColumns + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWeightColumns + threadIdx.x;
  wait_for_previous();
  float sum = 0;
  if (column < problem.columns) {
    for (int64_t part = threadIdx.y; part < problem.parts; part += kWeightTurns) {
      sum += problem.partial[part * problem.columns + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  // Warp w adds up the turns of column w.
  const float total = sum_over_warp(sums[threadIdx.x][threadIdx.y]);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWeightColumns + threadIdx.y;
  if (threadIdx.x == 0 && own < problem.columns) {
    static_cast<W*>(problem.gradient)[own] = from_float<W>(total);
  }
}

// Behind the kernel that wrote the parts: its blocks are in place when that one ends. It reads nothing before, so
// that this is safe outside of a capture too.
template <typename W>
void launch_weight_sum_of(const WeightSum& sum, const CudaScope& scope) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((sum.columns + kWeightColumns - 1) / kWeightColumns));
  config.blockDim = dim3(kWeightColumns, kWeightTurns);
  config.stream = scope.stream();
  config.attrs = &overlap;
  config.numAttrs = scope.attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, rms_norm_bwd_weight_kernel<W>, sum),
             "rms_norm_bwd_weight_kernel");
}

inline void launch_weight_sum(const WeightSum& sum, Dtype dtype, const CudaScope& scope) {
  switch (dtype) {
    case Dtype::kFloat32:
      return launch_weight_sum_of<float>(sum, scope);
    case Dtype::kBfloat16:
      return launch_weight_sum_of<Bf16>(sum, scope);
    case Dtype::kFloat16:
      return launch_weight_sum_of<Fp16>(sum, scope);
  }
}

}  // namespace graft_kernels::rms_norm

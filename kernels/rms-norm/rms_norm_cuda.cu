// RMSNorm on CUDA: picks the kernel by row length, alignment and dtypes, and launches it on the
// current stream of x's device.

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rms-norm/rms_norm_kernel.cuh"
#include "kernels/rms-norm/rms_norm_layout.h"
#include "kernels/rms-norm/rms_norm_long_kernel.cuh"
#include "kernels/rms-norm/rms_norm_ops.h"
#include "kernels/rms-norm/sm90_ring_forward_kernel.cuh"

namespace graft_kernels::rms_norm {

namespace {

// Whole vectors of 16 bytes everywhere?
bool is_vectorizable(const Problem& problem) {
  const int64_t x_bytes = bytes_of(problem.x_dtype);
  const bool mixed_out = problem.variant == Variant::kCastBeforeWeight;
  const int64_t out_bytes = mixed_out ? bytes_of(problem.weight_dtype) : x_bytes;
  const bool plain = is_aligned(problem.x, problem.x_rows, x_bytes) &&
                     is_aligned(problem.out, problem.out_rows, out_bytes) &&
                     reinterpret_cast<uintptr_t>(problem.weight) % 16 == 0;
  const bool added = problem.residual == nullptr ||
                     (is_aligned(problem.residual, problem.residual_rows, x_bytes) &&
                      is_aligned(problem.sum, problem.sum_rows, x_bytes));
  return plain && added && (problem.columns * x_bytes) % 16 == 0;
}

// The order of a row's sum. It looks at the row's length and the device, never at where rows lie.
Order order_of(int64_t vectors, const CudaScope& scope) {
  if (vectors <= 128) {
    return {32, 1};
  }
  if (vectors <= 512) {
    return {128, 1};
  }
  if (vectors <= 640) {
    return {160, 1};
  }
  if (vectors <= 1024) {
    return {256, 1};
  }
  if (vectors <= 2048) {
    return {512, 1};
  }
  constexpr int kMostParts = 8;
  for (int parts = 1; parts <= kMostParts; parts *= 2) {
    if (vectors <= int64_t{sm90::kRingThreads} * sm90::kLongVectors * parts &&
        scope.attribute(cudaDevAttrComputeCapabilityMajor) == 9) {
      return {sm90::kRingThreads, parts};
    }
  }
  return {1024, 1};
}

// Rows one stride apart in every tensor?
bool is_single_stride(const Problem& problem) {
  return problem.x_rows.num_dims == 1 && problem.out_rows.num_dims == 1 &&
         problem.residual_rows.num_dims == 1 && problem.sum_rows.num_dims == 1;
}

template <typename X, bool kCastBefore, int kThreads, int kThreadsPerRow, int kVectors, int kRows,
          bool kStrided = false>
void launch_register(const Problem& problem, const CudaScope& scope) {
  constexpr int64_t kRowsPerBlock = static_cast<int64_t>(kThreads / kThreadsPerRow) * kRows;
  const unsigned blocks = static_cast<unsigned>((problem.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  launch_overlapping(scope,
                     rms_norm_fwd_register_kernel<X, kCastBefore, kThreads, kThreadsPerRow,
                                                  kVectors, kRows, kStrided>,
                     blocks, kThreads, 0, problem);
}

// A cluster of blocks takes a row; false where the device has no room for one.
template <typename X, bool kCastBefore, bool kAdd>
bool launch_ring(const Problem& problem, int cluster, const CudaScope& scope) {
  const auto kernel = sm90::ring_fwd_kernel<X, kCastBefore, kAdd>;
  const int64_t vectors = problem.columns / kVectorSize<X>;
  const int64_t step = static_cast<int64_t>(cluster) * sm90::kRingThreads;
  const int64_t pieces = (vectors + step - 1) / step;
  const int64_t bytes = pieces * (kAdd ? 3 : 2) * sm90::kPieceBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(sm90::kRingThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = scope.stream();
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  int teams = scope.attribute(cudaDevAttrMultiProcessorCount);
  if (cluster > 1) {
    // No more clusters than run at once.
    check_cuda(cudaOccupancyMaxActiveClusters(&teams, kernel, &config),
               "cudaOccupancyMaxActiveClusters");
    if (teams < 1) {
      return false;
    }
  }
  teams = static_cast<int>(std::min<int64_t>(teams, problem.rows));
  config.gridDim = dim3(static_cast<unsigned>(teams * cluster));
  check_cuda(cudaLaunchKernelEx(&config, kernel, problem, cluster), "ring_fwd_kernel");
  return true;
}

// Launches the kernel that holds rows of this length on chip; false if none does.
template <typename X, bool kCastBefore>
bool try_on_chip(const Problem& problem, const Order& order, const CudaScope& scope) {
  const int64_t vectors = problem.columns / kVectorSize<X>;
  if (problem.rows > (int64_t{1} << 27)) {
    return false;  // the grid's limit, with a cluster of eight
  }
  const bool many = problem.rows >= (1 << 14);
  if (!is_single_stride(problem) && vectors <= 2048) {
    // Short rows alone: heads.
    if (vectors > 32) {
      return false;
    }
    vectors <= 16 && many ? launch_register<X, kCastBefore, 128, 16, 1, 4, true>(problem, scope)
                          : launch_register<X, kCastBefore, 128, 32, 1, 1, true>(problem, scope);
  } else if (vectors <= 16 && many) {
    launch_register<X, kCastBefore, 128, 16, 1, 2>(problem, scope);
  } else if (vectors <= 32) {
    // Several rows with half a warp keep enough bytes in flight, when there are enough rows: two vectors of a lane add
    // up as those of two lanes would.
    many ? launch_register<X, kCastBefore, 128, 16, 2, 4>(problem, scope)
         : launch_register<X, kCastBefore, 128, 32, 1, 1>(problem, scope);
  } else if (vectors <= 64) {
    launch_register<X, kCastBefore, 128, 32, 2, 1>(problem, scope);
  } else if (vectors <= 128) {
    launch_register<X, kCastBefore, 64, 32, 4, 1>(problem, scope);
  } else if (vectors <= 256) {
    launch_register<X, kCastBefore, 128, 128, 2, 1>(problem, scope);
  } else if (order.threads == 128) {
    launch_register<X, kCastBefore, 128, 128, 4, 1>(problem, scope);
  } else if (order.threads == 160) {
    launch_register<X, kCastBefore, 160, 160, 4, 1>(problem, scope);
  } else if (order.threads == 256) {
    launch_register<X, kCastBefore, 256, 256, 4, 1>(problem, scope);
  } else if (vectors <= 2048) {
    launch_register<X, kCastBefore, 512, 512, 4, 1>(problem, scope);
  } else if (order.threads == sm90::kRingThreads && is_single_stride(problem)) {
    return problem.residual != nullptr
               ? launch_ring<X, kCastBefore, true>(problem, order.parts, scope)
               : launch_ring<X, kCastBefore, false>(problem, order.parts, scope);
  } else {
    return false;
  }
  return true;
}

template <typename X, typename W, typename Out, bool kCastBefore>
void launch_looping(const Problem& problem, const Order& order, const CudaScope& scope) {
  const int64_t resident = static_cast<int64_t>(scope.attribute(cudaDevAttrMultiProcessorCount)) *
                           std::min(2048 / order.threads, 32);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(problem.rows, resident * 4));
  if (is_vectorizable(problem)) {
    rms_norm_fwd_looping_kernel<X, W, Out, kCastBefore, true>
        <<<grid, order.threads, 0, scope.stream()>>>(problem, order.parts);
  } else {
    rms_norm_fwd_looping_kernel<X, W, Out, kCastBefore, false>
        <<<grid, order.threads, 0, scope.stream()>>>(problem, order.parts);
  }
  check_cuda(cudaGetLastError(), "rms_norm_fwd_looping_kernel");
}

template <typename X, bool kCastBefore>
void launch_one_dtype(const Problem& problem, const Order& order, const CudaScope& scope) {
  if (!is_vectorizable(problem) || !try_on_chip<X, kCastBefore>(problem, order, scope)) {
    launch_looping<X, X, X, kCastBefore>(problem, order, scope);
  }
}

template <typename X>
void run_dtype(const Problem& problem, const CudaScope& scope) {
  const bool cast_before = problem.variant == Variant::kCastBeforeWeight;
  const int64_t vectors = (problem.columns + kVectorSize<X> - 1) / kVectorSize<X>;
  const Order order = order_of(vectors, scope);
  if (problem.weight_dtype == problem.x_dtype) {
    cast_before ? launch_one_dtype<X, true>(problem, order, scope)
                : launch_one_dtype<X, false>(problem, order, scope);
  } else if (cast_before) {
    launch_looping<X, float, float, true>(problem, order, scope);
  } else {
    launch_looping<X, float, X, false>(problem, order, scope);
  }
}

void run_cuda(const Problem& problem, const Tensor& x) {
  if (problem.rows == 0 || problem.columns == 0) {
    return;
  }
  const CudaScope scope(x);
  switch (problem.x_dtype) {
    case Dtype::kFloat32:
      return run_dtype<float>(problem, scope);
    case Dtype::kBfloat16:
      return run_dtype<Bf16>(problem, scope);
    case Dtype::kFloat16:
      return run_dtype<Fp16>(problem, scope);
  }
}

}  // namespace

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::rms_norm

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::rms_norm::CudaOps::implement(ops); }

// RMSNorm on CUDA: picks the kernel by row length, alignment and dtypes, and launches it on the
// current stream of x's device.

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda_launch.h"
#include "kernels/rms-norm/rms_norm_kernel.cuh"
#include "kernels/rms-norm/rms_norm_layout.h"
#include "kernels/rms-norm/rms_norm_long_kernel.cuh"
#include "kernels/rms-norm/rms_norm_ops.h"

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
  for (int parts = 1; parts <= kMaxCluster; parts *= 2) {
    if (vectors <= static_cast<int64_t>(kLongThreads) * kLongVectors * parts &&
        scope.attribute(cudaDevAttrComputeCapabilityMajor) == 9) {
      return {kLongThreads, parts};
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

template <typename X, bool kCastBefore>
void launch_shared(const Problem& problem, int cluster, cudaStream_t stream) {
  const auto kernel = rms_norm_fwd_shared_kernel<X, kCastBefore>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLongSharedBytes),
      "cudaFuncSetAttribute");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(problem.rows * cluster));
  config.blockDim = dim3(kLongThreads);
  config.dynamicSmemBytes = kLongSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, problem, static_cast<unsigned>(cluster)),
             "rms_norm_fwd_shared_kernel");
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
    launch_register<X, kCastBefore, 128, 16, 1, 4>(problem, scope);
  } else if (vectors <= 32) {
    // Short rows: several rows per warp keep enough bytes in flight, when there are enough rows.
    many ? launch_register<X, kCastBefore, 128, 32, 1, 4>(problem, scope)
         : launch_register<X, kCastBefore, 128, 32, 1, 1>(problem, scope);
  } else if (vectors <= 64) {
    launch_register<X, kCastBefore, 128, 32, 2, 2>(problem, scope);
  } else if (vectors <= 128) {
    launch_register<X, kCastBefore, 128, 32, 4, 1>(problem, scope);
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
  } else if (order.threads == kLongThreads && is_single_stride(problem)) {
    launch_shared<X, kCastBefore>(problem, order.parts, scope.stream());
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

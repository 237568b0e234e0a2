// Cuts the rows of a backward for the kernel of sm90_ring_backward_kernel.cuh and launches it. Included by the .cu file
// of each form.
#pragma once

#include <algorithm>

#include "kernels/common/cuda_launch.h"
#include "kernels/common/registration.h"
#include "kernels/rms-norm/sm90_ring_backward_kernel.cuh"

namespace graft_kernels::rms_norm::sm90 {

inline constexpr int64_t kMaxVectorsOfThread = 4;
// Of a multiprocessor; a block costs a kilobyte more.
inline constexpr int64_t kRingBytes = 227 * 1024;
inline constexpr int64_t kBlockBytes = 1024 + static_cast<int64_t>(sizeof(RingScratch<kMaxStages>));

struct RingLaunch {
  RingShape shape;
  int threads = 0;
  int vectors_of_thread = 0;
  int blocks_of_multiprocessor = 1;
  size_t bytes = 0;
};

// `vectors` of a row, `streams` tensors; stages is 0 where a row does not fit.
inline RingLaunch cut_rows(int64_t vectors, int streams) {
  constexpr int64_t kMaxSlice = kRingThreads * kMaxVectorsOfThread;
  RingLaunch launch;
  while ((vectors + launch.shape.cluster - 1) / launch.shape.cluster > kMaxSlice) {
    launch.shape.cluster *= 2;
  }
  const int64_t slice = (vectors + launch.shape.cluster - 1) / launch.shape.cluster;
  launch.shape.slice = static_cast<int>(slice);
  // What a row costs each warp beside its vectors is shared by two of them at least.
  launch.vectors_of_thread = slice <= 2 * kRingThreads ? 2 : 4;
  const int64_t threads = (slice + launch.vectors_of_thread - 1) / launch.vectors_of_thread;
  launch.threads = static_cast<int>((threads + kWarp - 1) / kWarp * kWarp);
  launch.blocks_of_multiprocessor = std::min(kRingThreads / launch.threads, 16);
  const int64_t slot = streams * ((slice * 16 + 127) / 128 * 128);
  const int64_t affordable = kRingBytes / launch.blocks_of_multiprocessor - kBlockBytes;
  const int64_t stages = std::min<int64_t>(affordable / slot, kMaxStages);
  launch.shape.stages =
      stages < 2 || launch.shape.cluster > kMaxRingCluster ? 0 : static_cast<int>(stages);
  launch.bytes = static_cast<size_t>(stages * slot);
  return launch;
}

template <Form kForm, typename X, bool kAdd, int kVectors>
bool launch_ring_kernel(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
                        const RingLaunch& launch, Tensor& partial) {
  const auto kernel = ring_bwd_kernel<kForm, X, kAdd, kVectors>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(launch.bytes)),
             "cudaFuncSetAttribute");
  const int cluster = launch.shape.cluster;
  if (cluster > 8) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = launch.bytes;
  config.stream = scope.stream();
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  int teams = scope.attribute(cudaDevAttrMultiProcessorCount) * launch.blocks_of_multiprocessor;
  if (cluster > 1) {
    // No more clusters than run at once: one that waits for the others takes as long again.
    check_cuda(cudaOccupancyMaxActiveClusters(&teams, kernel, &config),
               "cudaOccupancyMaxActiveClusters");
    if (teams < 1) {
      return false;
    }
  }
  const FormProblem& call = problem.call;
  const int64_t rows = call.rows / call.groups;
  const int64_t most = std::max<int64_t>(std::min<int64_t>(rows, teams / call.groups), 1);
  const int64_t turns = (rows + most - 1) / most;
  problem.parts = (rows + turns - 1) / turns;
  const int64_t elements = problem.parts * call.groups * call.columns;
  const bool is_layer = kForm == Form::kLayer;
  partial = torch::stable::new_empty(x, {(is_layer ? 2 : 1) * elements}, ScalarType::Float);
  problem.partial = static_cast<float*>(partial.mutable_data_ptr());
  problem.partial_bias = is_layer ? problem.partial + elements : nullptr;
  config.gridDim = dim3(static_cast<unsigned>(problem.parts * call.groups * cluster));
  check_cuda(cudaLaunchKernelEx(&config, kernel, problem, launch.shape), "ring_bwd_kernel");
  return true;
}

template <Form kForm, bool kAdd>
bool launch_ring(FormBackwardProblem& problem, const Tensor& x, const CudaScope& scope,
                 Tensor& partial) {
  const auto with_storage_type = [&](auto storage) {
    using X = decltype(storage);
    const int64_t vectors = problem.call.columns / kVectorSize<X>;
    const RingLaunch launch = cut_rows(vectors, kStreams<kForm, kAdd>);
    if (launch.shape.stages == 0) {
      return false;
    }
    switch (launch.vectors_of_thread) {
      case 2:
        return launch_ring_kernel<kForm, X, kAdd, 2>(problem, x, scope, launch, partial);
      default:
        return launch_ring_kernel<kForm, X, kAdd, 4>(problem, x, scope, launch, partial);
    }
  };
  switch (problem.call.x_dtype) {
    case Dtype::kFloat32:
      return with_storage_type(float());
    case Dtype::kBfloat16:
      return with_storage_type(Bf16());
    default:
      return with_storage_type(Fp16());
  }
}

}  // namespace graft_kernels::rms_norm::sm90

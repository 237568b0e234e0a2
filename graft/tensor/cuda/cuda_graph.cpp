// CUDA graphs through libtorch's own, whose allocator keeps a graph's memory apart. A library of its own,
// since it needs CUDA's headers to build and libtorch_cuda to load.
#include <exception>
#include <memory>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>

#include "graft/tensor/device_graph.h"

namespace graft::tensor {

namespace {

class CudaGraph final : public DeviceGraph {
 public:
  explicit CudaGraph(int device) : device_(static_cast<c10::DeviceIndex>(device)) {}

  void capture(const std::function<void()>& work) override {
    // The default stream cannot be captured. Nothing runs here, so nothing has to be waited for.
    const c10::cuda::CUDAStreamGuard on_own_stream(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_));
    const auto pool = at::cuda::graph_pool_handle();
    graph_ = std::make_unique<at::cuda::CUDAGraph>();
    // What other threads do meanwhile is none of this graph's business.
    graph_->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    try {
      work();
      graph_->capture_end();
    } catch (...) {
      abandon(pool);
      throw;
    }
  }

  void replay() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_->replay();
  }

 private:
  // Takes stream and allocator out of a capture that failed.
  void abandon(c10::MempoolId_t pool) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device_);
    if (cudaStreamIsCapturing(stream, &status) != cudaSuccess ||
        status != cudaStreamCaptureStatusNone) {
      cudaGraph_t unfinished = nullptr;
      if (cudaStreamEndCapture(stream, &unfinished) == cudaSuccess && unfinished != nullptr) {
        cudaGraphDestroy(unfinished);
      }
    }
    cudaGetLastError();  // the failure is reported by what was thrown
    c10::cuda::CUDACachingAllocator::endAllocateToPool(device_, pool);
    c10::cuda::CUDACachingAllocator::releasePool(device_, pool);
    graph_.reset();
  }

  c10::DeviceIndex device_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

}  // namespace

}  // namespace graft::tensor

extern "C" __attribute__((visibility("default"))) graft::tensor::DeviceGraph* graft_make_cuda_graph(
    int device) {
  return new graft::tensor::CudaGraph(device);
}

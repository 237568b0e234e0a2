// What every launcher does: the tensor's device and its current stream, and a check after the
// launch. Nothing here synchronises, so that launches can be captured into a graph.
#pragma once

#include <stdexcept>
#include <string>

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace graft_kernels {

// Throws std::runtime_error naming the call when `status` is an error.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("[cuda] ") + call + ": expected cudaSuccess, got " +
                             cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
  }
}

// Makes the tensor's device current for its lifetime and knows the device's current stream.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // Whether a launch may overlap the end of the one before (overlap.cuh): from Hopper on, and inside a
  // capture alone. There the order of launches is fixed, and none that writes weights stands between the
  // kernels that read them ahead.
  bool may_overlap() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream_, &status) == cudaSuccess &&
           status == cudaStreamCaptureStatusActive &&
           attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device_), "cudaDeviceGetAttribute");
    return value;
  }

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Launches a kernel that calls wait_for_previous() so that it overlaps the one before, where it may.
template <typename... Parameters>
void launch_overlapping(const CudaScope& scope, void (*kernel)(Parameters...), unsigned blocks,
                        unsigned threads, size_t shared_bytes, const Parameters&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = scope.stream();
  config.attrs = &overlap;
  config.numAttrs = scope.may_overlap() ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace graft_kernels

// What every launcher does: the tensor's device and its current stream, and a check after the
// launch. Nothing here synchronises, so that launches can be captured into a graph.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
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

// What the driver says of a device never changes: it is asked once.
inline int device_attribute(int device, cudaDeviceAttr which) {
  constexpr int kDevices = 64, kAttributes = 256;
  static std::array<std::array<std::atomic<int>, kAttributes>, kDevices> known{};  // plus one
  std::atomic<int>* place =
      device < kDevices && which < kAttributes ? &known[device][which] : nullptr;
  int value = place == nullptr ? 0 : place->load(std::memory_order_relaxed);
  if (value != 0) {
    return value - 1;
  }
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  if (place != nullptr) {
    place->store(value + 1, std::memory_order_relaxed);
  }
  return value;
}

// Makes the tensor's device current for its lifetime and knows the device's current stream.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor) : device_(tensor.get_device_index()) {
    int current = -1;
    check_cuda(cudaGetDevice(&current), "cudaGetDevice");
    if (current != device_) {
      guard_.emplace(device_);
    }
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // Whether code for Hopper runs: later devices get that of sm_80.
  bool is_hopper() const { return attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

  // Whether a launch may overlap the end of the one before (overlap.cuh). Beside what the device gains, such a launch
  // costs the host 0.3 to 0.6 µs less.
  bool may_overlap() const { return is_hopper(); }

  // Whether its kernel may also read weights before what was launched before is done: inside a capture alone.
  // There the order of launches is fixed, and none that writes weights stands between the kernels that read them
  // ahead.
  bool may_read_ahead() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return may_overlap() && cudaStreamIsCapturing(stream_, &status) == cudaSuccess &&
           status == cudaStreamCaptureStatusActive;
  }

  int device() const { return device_; }
  int attribute(cudaDeviceAttr which) const { return device_attribute(device_, which); }

 private:
  int device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  cudaStream_t stream_ = nullptr;
};

// Lets a kernel have `bytes` of shared memory, and the device keep as much as it can for others beside it. A call
// costs 0.3 µs, so one is made per kernel and device.
template <auto kKernel>
void allow_shared(const CudaScope& scope, int bytes) {
  static std::atomic<uint64_t> done = 0;  // a bit for each device
  const uint64_t bit = scope.device() < 64 ? uint64_t{1} << scope.device() : 0;
  if ((done.load(std::memory_order_acquire) & bit) != 0) {
    return;
  }
  check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "cudaFuncSetAttribute");
  check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "cudaFuncSetAttribute");
  done.fetch_or(bit, std::memory_order_release);
}

// Launches a kernel that calls wait_for_previous(); `overlaps`: it may start before the one before has ended.
template <typename... Parameters>
void launch_waiting(const CudaScope& scope, bool overlaps, void (*kernel)(Parameters...),
                    unsigned blocks, unsigned threads, size_t shared_bytes,
                    const Parameters&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = scope.stream();
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

// A kernel that touches no memory before it waits.
template <typename... Parameters>
void launch_overlapping(const CudaScope& scope, void (*kernel)(Parameters...), unsigned blocks,
                        unsigned threads, size_t shared_bytes, const Parameters&... arguments) {
  launch_waiting(scope, scope.may_overlap(), kernel, blocks, threads, shared_bytes, arguments...);
}

// A kernel that reads weights before it waits.
template <typename... Parameters>
void launch_reading_ahead(const CudaScope& scope, void (*kernel)(Parameters...), unsigned blocks,
                          unsigned threads, size_t shared_bytes, const Parameters&... arguments) {
  launch_waiting(scope, scope.may_read_ahead(), kernel, blocks, threads, shared_bytes,
                 arguments...);
}

}  // namespace graft_kernels

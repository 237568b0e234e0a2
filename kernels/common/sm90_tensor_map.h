// The driver's description of tensors for Hopper's bulk copies, without linking the driver.
#pragma once

#include <stdexcept>

#include <cuda.h>

#include "kernels/common/cuda_launch.h"

namespace graft_kernels::sm90 {

using Encode = decltype(&cuTensorMapEncodeTiled);

inline Encode encode_function() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected in the driver, got none");
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace graft_kernels::sm90

// What a backward multiplies gradients with that were made in the forward, on CUDA: the factor lies on the device, where
// nothing may wait for it, and is one for all who call backward() on the loss itself.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda_launch.h"
#include "kernels/common/registration.h"
#include "kernels/common/vec.cuh"
#include "kernels/loss/loss_scale.h"

namespace graft_kernels::loss {

namespace {

constexpr unsigned kThreads = 256, kBlocksPerProcessor = 8;

template <typename T, int kSize>
__global__ void scale_kernel(T* values, int64_t vectors, const float* factor) {
  const float by = *factor;
  if (by == 1.0F) {
    return;
  }
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < vectors; i += step) {
    Vec<T, kSize> vector = load_streaming<T, kSize>(values + i * kSize);
#pragma unroll
    for (int element = 0; element < kSize; ++element) {
      vector.data[element] = from_float<T>(to_float(vector.data[element]) * by);
    }
    store_vector(values + i * kSize, vector);
  }
}

template <typename T>
void scale(const Tensor& gradient, const Tensor& factor) {
  const CudaScope scope(gradient);
  auto* values = static_cast<T*>(gradient.mutable_data_ptr());
  const auto launch = [&](auto size) {
    constexpr int kSize = decltype(size)::value;
    const int64_t vectors = gradient.numel() / kSize;
    const int64_t most =
        int64_t{kBlocksPerProcessor} * scope.attribute(cudaDevAttrMultiProcessorCount);
    const int64_t blocks = std::min<int64_t>((vectors + kThreads - 1) / kThreads, most);
    scale_kernel<T, kSize><<<static_cast<unsigned>(blocks), kThreads, 0, scope.stream()>>>(
        values, vectors, static_cast<const float*>(factor.const_data_ptr()));
    check_cuda(cudaGetLastError(), "scale_kernel");
  };
  const bool aligned = reinterpret_cast<uintptr_t>(values) % 16 == 0;
  aligned&& gradient.numel() % kVectorSize<T> == 0
      ? launch(std::integral_constant<int, kVectorSize<T>>())
      : launch(std::integral_constant<int, 1>());
}

void scale_gradient_cuda(Tensor gradient, const Tensor& factor) {
  check_scale(gradient, factor);
  if (gradient.numel() == 0) {
    return;
  }
  switch (dtype_of(gradient)) {
    case Dtype::kFloat32:
      return scale<float>(gradient, factor);
    case Dtype::kBfloat16:
      return scale<Bf16>(gradient, factor);
    case Dtype::kFloat16:
      return scale<Fp16>(gradient, factor);
  }
}

}  // namespace

}  // namespace graft_kernels::loss

GRAFT_OPS_IMPL(CUDA, ops) {
  ops.impl("scale_gradient_", TORCH_BOX(&graft_kernels::loss::scale_gradient_cuda));
}

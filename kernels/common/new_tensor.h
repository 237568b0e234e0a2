// New tensors for results and scratch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace graft_kernels {

// An uninitialized, contiguous tensor on the device of `like`, of its dtype unless another is named. As
// torch::stable::new_empty, which looks its op up by name and boxes six arguments at every call: half of its time.
inline torch::stable::Tensor new_tensor(
    const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
    std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  constexpr size_t kMostDims = 8;
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  const bool has_memory =
      type == aoti_torch_device_type_cpu() || type == aoti_torch_device_type_cuda();
  if (!has_memory || sizes.size() > kMostDims) {
    return torch::stable::new_empty(like, sizes, dtype);
  }
  std::array<int64_t, kMostDims> strides{};
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  int32_t number = 0, index = 0;
  if (dtype) {
    number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &number));
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), number, type, index, &handle));
  return torch::stable::Tensor(handle);
}

}  // namespace graft_kernels

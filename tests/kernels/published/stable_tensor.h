// Registration and tensors with PyTorch's stable ABI.
#pragma once

#include "kernels/common/registration.h"

#include "flash_ops.h"

namespace graft_tests {

using StableTensor = torch::stable::Tensor;

template <>
inline StableTensor make(const StableTensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

}  // namespace graft_tests

// Attention for training on CUDA: what its kernels are given beside the problem.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_train.h"

namespace graft_kernels::attention {

// Where packed sequences begin, on the device; absent when dense. The kernels keep the numbers within the
// tensors.
struct Packing {
  const int32_t* queries = nullptr;  // [sequences + 1]
  const int32_t* keys = nullptr;
  int32_t sequences = 0;
};

}  // namespace graft_kernels::attention

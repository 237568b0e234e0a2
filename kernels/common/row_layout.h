// Where the rows of a tensor lie: every dimension but the last, collapsed as far as strides allow.
// Knows no Torch: device code takes it by value.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GRAFT_HOST_DEVICE __host__ __device__
#else
#define GRAFT_HOST_DEVICE
#endif

namespace graft_kernels {

struct RowLayout {
  static constexpr int kMaxDims = 4;

  int num_dims = 1;                         // collapsed leading dimensions, at least one
  int64_t size[kMaxDims] = {1, 1, 1, 1};    // outermost first
  int64_t stride[kMaxDims] = {0, 0, 0, 0};  // in elements

  // Element offset of row `row`, counted over all leading dimensions.
  GRAFT_HOST_DEVICE int64_t offset(int64_t row) const {
    if (num_dims == 1) {
      return row * stride[0];
    }
    int64_t offset = 0;
    for (int dim = num_dims - 1; dim > 0; --dim) {
      offset += (row % size[dim]) * stride[dim];
      row /= size[dim];
    }
    return offset + row * stride[0];
  }
};

}  // namespace graft_kernels

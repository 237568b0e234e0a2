// How both launchers choose the layout that a kernel is compiled for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/activation/activation_kernel.cuh"
#include "kernels/common/tensor_checks.h"

namespace graft_kernels::activation {

// Do all rows begin at a multiple of 16 bytes?
inline bool is_aligned(const void* pointer, const RowLayout& rows, int64_t num_rows,
                       int64_t element_bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int dim = 0; dim < rows.num_dims && num_rows > 1; ++dim) {
    aligned = aligned && (rows.stride[dim] * element_bytes) % 16 == 0;
  }
  return aligned;
}

// `aligned` and `single_stride` hold for every tensor of the call.
inline Layout choose_layout(bool aligned, bool single_stride, int64_t rows, int64_t columns,
                            int64_t element_bytes) {
  if (!aligned) {
    return Layout::kAny;
  }
  if (rows == 1) {
    return Layout::kFlat;
  }
  const int64_t row_bytes = columns * element_bytes;
  // Indices reach one block beyond the count.
  const bool counts = row_bytes / 16 * rows < UINT32_MAX - (1 << 16);
  return single_stride && row_bytes % 16 == 0 && counts ? Layout::kRows : Layout::kAny;
}

inline unsigned count_blocks(int64_t vectors, int64_t per_block) {
  const int64_t blocks = std::max<int64_t>((vectors + per_block - 1) / per_block, 1);
  if (blocks > INT32_MAX) {
    fail("activation", "input", "at most 2^31 - 1 blocks of work", std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

}  // namespace graft_kernels::activation

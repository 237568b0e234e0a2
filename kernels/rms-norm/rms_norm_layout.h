// What both launchers ask of a tensor's layout.
#pragma once

#include <cstdint>

#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

// Do all rows begin at a multiple of 16 bytes?
inline bool is_aligned(const void* pointer, const RowLayout& rows, int64_t element_bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int dim = 0; dim < rows.num_dims; ++dim) {
    aligned = aligned && (rows.stride[dim] * element_bytes) % 16 == 0;
  }
  return aligned;
}

}  // namespace graft_kernels::rms_norm

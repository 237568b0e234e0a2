// What launchers ask of a tensor's layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace graft_kernels::rotary {

// Do rows of these strides, in elements, all begin at a multiple of 16 bytes?
inline bool is_aligned(const void* pointer, std::initializer_list<int64_t> strides,
                       int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 &&
         std::all_of(strides.begin(), strides.end(),
                     [&](int64_t stride) { return stride * element_bytes % 16 == 0; });
}

}  // namespace graft_kernels::rotary

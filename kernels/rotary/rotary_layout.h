// What launchers ask of a tensor's layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/rotary/rotary_append.h"

namespace graft_kernels::rotary {

// Do rows of these strides, in elements, all begin at a multiple of 16 bytes?
inline bool is_aligned(const void* pointer, std::initializer_list<int64_t> strides,
                       int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 &&
         std::all_of(strides.begin(), strides.end(),
                     [&](int64_t stride) { return stride * element_bytes % 16 == 0; });
}

// Whole vectors of 16 bytes, pairs of which are whole too, of heads and of the same elements of tables; and of values
// where the call appends? T is the heads' dtype, S the tables'.
template <typename T, typename S>
bool is_vectorizable(const AppendProblem& problem) {
  constexpr int64_t kSize = 16 / sizeof(T);
  const Problem& base = problem.base;
  const bool appends = problem.lengths != nullptr;
  // The length's stride of an append is never used.
  const auto fits = [&](const void* pointer, const int64_t* strides) {
    return is_aligned(pointer, {strides[0], appends ? 0 : strides[1], strides[2]}, sizeof(T));
  };
  bool all = (base.interleaved ? base.rotary_dim : base.rotary_dim / 2) % kSize == 0 &&
             base.head_dim % kSize == 0;
  for (const Heads& heads : base.heads) {
    all = all && fits(heads.in, heads.in_stride) && fits(heads.out, heads.out_stride);
  }
  for (const int which : {0, 1}) {
    const Table& table = which == 0 ? base.cos : base.sin;
    all = all && (appends ? is_aligned(table.data, {problem.table_stride[which]}, sizeof(S))
                          : is_aligned(table.data, {table.stride[0], table.stride[1]}, sizeof(S)));
  }
  return all &&
         (!appends || (is_aligned(problem.values,
                                  {problem.values_stride[0], problem.values_stride[1],
                                   problem.values_stride[2], problem.key_place_stride},
                                  sizeof(T)) &&
                       is_aligned(problem.value, {problem.value_stride[0], problem.value_stride[1]},
                                  sizeof(T))));
}

}  // namespace graft_kernels::rotary

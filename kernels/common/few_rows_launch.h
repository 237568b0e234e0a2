// Host side of few_rows_linear.cuh: which calls it takes, and the launch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda_launch.h"
#include "kernels/common/few_rows_linear.cuh"
#include "kernels/common/tensor_checks.h"

namespace graft_kernels::few_rows {

// Calls body(T{}) with the device type of a 16-bit dtype.
template <typename Body>
void with_half_type(Dtype dtype, const Body& body) {
  dtype == Dtype::kBfloat16 ? body(Bf16{}) : body(Fp16{});
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether rows of x can be read in 16-byte pieces: 1 to 16 of them, of a 16-bit dtype.
inline bool takes_input(const Tensor& x, int64_t rows, int64_t row_stride) {
  const int64_t depth = x.size(x.dim() - 1);
  return rows >= 1 && rows <= kMaxRows && dtype_of(x) != Dtype::kFloat32 && depth % 8 == 0 &&
         depth < INT32_MAX && row_stride % 8 == 0 && is_aligned(read_pointer(x));
}

inline bool takes_weight(const Tensor& weight) {
  return is_aligned(read_pointer(weight)) && weight.size(0) < INT32_MAX / 4;
}

// Calls body(T{}, groups, warps, blocks): the device type, the groups of rows of x and the warps of a block as constants,
// and the blocks for so many tiles of a weight. Two blocks keep a multiprocessor busy, or one of twice the warps where
// there are no more tiles than that.
template <typename Body>
void with_shape(const CudaScope& scope, Dtype dtype, int64_t rows, int64_t tiles,
                const Body& body) {
  const int64_t processors = scope.attribute(cudaDevAttrMultiProcessorCount);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, 2 * processors));
  const auto with_warps = [&](auto type, auto groups) {
    tiles <= processors ? body(type, groups, std::integral_constant<int, kMostWarps>(), blocks)
                        : body(type, groups, std::integral_constant<int, kMostWarps / 2>(), blocks);
  };
  with_half_type(dtype, [&](auto type) {
    rows <= kGroupRows ? with_warps(type, std::integral_constant<int, 1>())
                       : with_warps(type, std::integral_constant<int, 2>());
  });
}

inline void launch_linear(const CudaScope& scope, Dtype dtype, const LinearProblem& problem) {
  const int64_t tiles = (problem.columns() + kTileRows - 1) / kTileRows;
  with_shape(scope, dtype, problem.rows, tiles,
             [&](auto type, auto groups, auto warps, unsigned blocks) {
               constexpr int kGroups = decltype(groups)::value, kWarps = decltype(warps)::value;
               launch_reading_ahead(scope, linear_kernel<decltype(type), kGroups, kWarps>, blocks,
                                    32 * kWarps, 0, problem);
             });
}

}  // namespace graft_kernels::few_rows

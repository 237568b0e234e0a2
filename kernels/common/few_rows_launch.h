// Host side of few_rows_linear.cuh: which calls it takes, and the launch.
#pragma once

#include <algorithm>
#include <cstdint>

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

// Blocks that keep every multiprocessor busy, or as many as there is work for.
inline unsigned grid_size(const CudaScope& scope, int64_t tiles) {
  return static_cast<unsigned>(
      std::min<int64_t>(tiles, 2 * scope.attribute(cudaDevAttrMultiProcessorCount)));
}

inline void launch_linear(const CudaScope& scope, Dtype dtype, const LinearProblem& problem) {
  const unsigned blocks = grid_size(scope, (problem.columns() + kTileRows - 1) / kTileRows);
  with_half_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = problem.rows <= kGroupRows ? linear_kernel<T, 1> : linear_kernel<T, 2>;
    launch_overlapping(scope, kernel, blocks, kThreads, 0, problem);
  });
}

}  // namespace graft_kernels::few_rows

// RMSNorm of the other rows: any length, layout, alignment and dtype of the weight; a row is read twice. Device code on
// raw pointers; no Torch.
#pragma once

#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm {

// A vector of a row; element by element where it may lie at any address or reach beyond the row.
template <bool kAligned, int kSize, typename T>
__device__ __forceinline__ Vec<T, kSize> load_any(const T* row, int64_t column, int64_t columns) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Vec<T, kSize>*>(row + column);
  } else {
    Vec<T, kSize> value = {};
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (column + i < columns) {
        value.data[i] = row[column + i];
      }
    }
    return value;
  }
}
template <bool kAligned, int kSize, typename T>
__device__ __forceinline__ void store_any(T* row, int64_t column, int64_t columns,
                                          const Vec<T, kSize>& value) {
  if constexpr (kAligned) {
    store_vector(row + column, value);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (column + i < columns) {
        row[column + i] = value.data[i];
      }
    }
  }
}

// One block of Order::threads threads per row at a time; the row is read once for the sum and once
// more (from L2, mostly) for the result.
template <typename X, typename W, typename Out, bool kCastBefore, bool kAligned>
__global__ void rms_norm_fwd_looping_kernel(const __grid_constant__ Problem problem, int parts) {
  constexpr int kSize = kVectorSize<X>;
  __shared__ float shared_sums[kWarp];
  const int num_warps = blockDim.x / kWarp;
  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const int64_t columns = problem.columns;
  const int64_t part_step = static_cast<int64_t>(blockDim.x) * kSize;
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(problem.x) + problem.x_rows.offset(row);
    const X* residual = nullptr;
    X* sum = nullptr;
    if (problem.residual != nullptr) {
      residual = static_cast<const X*>(problem.residual) + problem.residual_rows.offset(row);
      sum = static_cast<X*>(problem.sum) + problem.sum_rows.offset(row);
    }
    float squares = 0;
    for (int part = 0; part < parts; ++part) {
      float of_part = 0;
      for (int64_t column = part * part_step + threadIdx.x * kSize; column < columns;
           column += parts * part_step) {
        Vec<X, kSize> value = load_any<kAligned, kSize>(x, column, columns);
        if (residual != nullptr) {
          value = sum_of(load_any<kAligned, kSize>(residual, column, columns), value);
          store_any<kAligned>(sum, column, columns, value);
        }
        of_part += squares_of(value);
      }
      squares += sum_over_block(of_part, shared_sums, num_warps);
      // The sums are written again for the next part or row.
      __syncthreads();
    }
    const float inverse = rsqrtf(squares / static_cast<float>(columns) + problem.eps);
    const X* source = sum != nullptr ? sum : x;
    Out* out = static_cast<Out*>(problem.out) + problem.out_rows.offset(row);
    // Each thread reads back the elements that it wrote itself, so no barrier stands in between.
    for (int64_t column = threadIdx.x * kSize; column < columns; column += part_step) {
      const Vec<X, kSize> value = load_any<kAligned, kSize>(source, column, columns);
      const Vec<W, kSize> scaling =
          load_any<kAligned, kSize>(static_cast<const W*>(problem.weight), column, columns);
      store_any<kAligned>(out, column, columns,
                          scale_vector<kCastBefore, Out>(value, inverse, scaling, zero_centered));
    }
  }
}

}  // namespace graft_kernels::rms_norm

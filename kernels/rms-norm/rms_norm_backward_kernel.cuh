// RMSNorm's backward on CUDA. Device code on raw pointers; no Torch. Three kernels:
//   register   rows that fit into a block's registers: every tensor is read once; the next rows are
//              on their way while the current ones are reduced
//   looping    any row length, layout, alignment and dtype of the weight; reads the row twice
//   weight     adds up the blocks' shares of the weight's gradient
// A block takes rows in turn and keeps its share of the weight's gradient to itself until the end,
// so that no two blocks ever add to one number: the result has one order.
#pragma once

#include "kernels/rms-norm/rms_norm_long_kernel.cuh"

namespace graft_kernels::rms_norm {

// Sums over a block of two values at once. `shared` has a slot per warp; the caller alternates
// between two of them, so that one barrier a call is enough.
__device__ __forceinline__ float2 sum_pair_over_block(float2 value, float2* shared, int num_warps) {
  value.x = sum_over_warp(value.x);
  value.y = sum_over_warp(value.y);
  if (num_warps == 1) {
    return value;
  }
  if (threadIdx.x % kWarp == 0) {
    shared[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  value = lane < num_warps ? shared[lane] : make_float2(0.0F, 0.0F);
  return make_float2(sum_over_warp(value.x), sum_over_warp(value.y));
}

// What the elements of a row share in the second half of the work.
struct RowFactors {
  float inverse;  // rsqrt(mean(x^2) + eps)
  float pull;     // inverse^2 * mean(gradient * x)
};

__device__ __forceinline__ RowFactors factors_of(float2 sums, const BackwardProblem& problem) {
  const float width = static_cast<float>(problem.columns);
  const float inverse = rsqrtf(sums.x / width + problem.eps);
  return {inverse, inverse * inverse * (sums.y / width)};
}

// Adds (x^2, grad_out * weight * x) of a vector.
template <typename X, typename W, typename Out, int kSize>
__device__ __forceinline__ void add_sums(float2& sums, const Vec<X, kSize>& x,
                                         const Vec<Out, kSize>& incoming,
                                         const Vec<W, kSize>& weight, float offset) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float element = to_float(x.data[i]);
    const float gradient = to_float(incoming.data[i]) * (offset + to_float(weight.data[i]));
    sums.x = fmaf(element, element, sums.x);
    sums.y = fmaf(gradient, element, sums.y);
  }
}

// The gradient of x for a vector; adds the share of the weight's gradient to `shares`.
template <typename X, typename W, typename Out, int kSize>
__device__ __forceinline__ Vec<X, kSize> backward_vector(
    const Vec<X, kSize>& x, const Vec<Out, kSize>& incoming, const Vec<W, kSize>& weight,
    float offset, const RowFactors& factors, const Vec<X, kSize>* grad_sum, float* shares) {
  Vec<X, kSize> result;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float element = to_float(x.data[i]);
    const float from_above = to_float(incoming.data[i]);
    const float gradient = from_above * (offset + to_float(weight.data[i]));
    float value = factors.inverse * (gradient - element * factors.pull);
    if (grad_sum != nullptr) {
      value += to_float(grad_sum->data[i]);
    }
    result.data[i] = from_float<X>(value);
    shares[i] = fmaf(from_above, element * factors.inverse, shares[i]);
  }
  return result;
}

// kThreadsPerRow threads hold kRows rows at once, kVectors vectors of 16 bytes per thread and row.
// X is the dtype of x, weight and all gradients.
template <typename X, bool kAdd, int kThreads, int kThreadsPerRow, int kVectors, int kRows,
          int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rms_norm_bwd_register_kernel(const __grid_constant__ BackwardProblem problem) {
  constexpr int kSize = kVectorSize<X>;
  constexpr int kGroups = kThreads / kThreadsPerRow;
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreadsPerRow == kWarp || (kGroups == 1 && kRows == 1));
  using Vector = Vec<X, kSize>;
  struct Rows {
    Vector x[kRows][kVectors];
    Vector incoming[kRows][kVectors];
    Vector grad_sum[kAdd ? kRows : 1][kAdd ? kVectors : 1];
  };
  __shared__ float2 shared_sums[2][kWarps];
  const int lane = threadIdx.x % kThreadsPerRow;
  const int num_vectors = static_cast<int>(problem.columns / kSize);
  const float offset = problem.variant == Variant::kZeroCentered ? 1.0F : 0.0F;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGroups * kRows;

  const auto load_rows = [&](int64_t first) {
    Rows rows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t row = first + r;
        const int64_t index = lane + v * kThreadsPerRow;
        const bool exists = row < problem.rows && index < num_vectors;
        rows.x[r][v] = {};
        rows.incoming[r][v] = {};
        if (exists) {
          rows.x[r][v] = load_streaming<X, kSize>(static_cast<const X*>(problem.x) +
                                                  row * problem.x_rows.stride[0] + index * kSize);
          rows.incoming[r][v] =
              load_streaming<X, kSize>(static_cast<const X*>(problem.grad_out) +
                                       row * problem.grad_out_rows.stride[0] + index * kSize);
        }
        if constexpr (kAdd) {
          rows.grad_sum[r][v] = {};
          if (exists) {
            rows.grad_sum[r][v] =
                load_streaming<X, kSize>(static_cast<const X*>(problem.grad_sum) +
                                         row * problem.grad_sum_rows.stride[0] + index * kSize);
          }
        }
      }
    }
    return rows;
  };

  int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kThreadsPerRow) * kRows;
  Rows current = load_rows(first);
  Vector weights[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t index = lane + v * kThreadsPerRow;
    weights[v] = {};
    if (index < num_vectors) {
      weights[v] =
          load_shared_data<X, kSize>(static_cast<const X*>(problem.weight) + index * kSize);
    }
  }
  float shares[kVectors][kSize] = {};
  int turn = 0;
  // All groups of a block take the same number of turns: a row beyond the last is a row of zeros.
  for (int64_t block_first = static_cast<int64_t>(blockIdx.x) * kGroups * kRows;
       block_first < problem.rows; block_first += step, first += step) {
    const Rows next = load_rows(first + step);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float2 sums = make_float2(0.0F, 0.0F);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        add_sums(sums, current.x[r][v], current.incoming[r][v], weights[v], offset);
      }
      sums = sum_pair_over_block(sums, shared_sums[turn], kGroups == 1 ? kWarps : 1);
      turn ^= 1;
      const RowFactors factors = factors_of(sums, problem);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        forget(current.x[r][v]);
        forget(current.incoming[r][v]);
        Vector scaling = weights[v];
        forget(scaling);
        const Vector* grad_sum = kAdd ? &current.grad_sum[kAdd ? r : 0][kAdd ? v : 0] : nullptr;
        const Vector result = backward_vector(current.x[r][v], current.incoming[r][v], scaling,
                                              offset, factors, grad_sum, shares[v]);
        const int64_t row = first + r;
        const int64_t index = lane + v * kThreadsPerRow;
        if (row < problem.rows && index < num_vectors) {
          store_vector(
              static_cast<X*>(problem.grad_x) + row * problem.grad_x_rows.stride[0] + index * kSize,
              result);
        }
      }
    }
    current = next;
  }

  // Each block writes one row of `partial`; warps with rows of their own first add up in turn.
  float* partial = problem.partial + static_cast<int64_t>(blockIdx.x) * problem.columns;
  if constexpr (kGroups > 1) {
    __shared__ float shared_shares[kGroups][kVectors * kWarp * kSize];
    float* own = shared_shares[threadIdx.x / kThreadsPerRow];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        own[(lane + v * kWarp) * kSize + i] = shares[v][i];
      }
    }
    __syncthreads();
    for (int column = threadIdx.x; column < problem.columns; column += kThreads) {
      float total = 0;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        total += shared_shares[group][column];
      }
      partial[column] = total;
    }
  } else {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t index = lane + v * kThreadsPerRow;
      if (index < num_vectors) {
        Vec<float, kSize> share;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          share.data[i] = shares[v][i];
        }
        store_vector(partial + index * kSize, share);
      }
    }
  }
}

// One row per block at a time. A thread owns the same columns in every row.
template <typename X, typename W, typename Out, bool kAligned>
__global__ void rms_norm_bwd_looping_kernel(const __grid_constant__ BackwardProblem problem) {
  constexpr int kSize = kVectorSize<X>;
  __shared__ float2 shared_sums[2][kWarp];
  const int num_warps = blockDim.x / kWarp;
  const float offset = problem.variant == Variant::kZeroCentered ? 1.0F : 0.0F;
  const int64_t columns = problem.columns;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kSize;
  const W* weight = static_cast<const W*>(problem.weight);
  float* partial = problem.partial + static_cast<int64_t>(blockIdx.x) * columns;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < problem.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(problem.x) + problem.x_rows.offset(row);
    const Out* incoming =
        static_cast<const Out*>(problem.grad_out) + problem.grad_out_rows.offset(row);
    const X* grad_sum = problem.grad_sum == nullptr ? nullptr
                                                    : static_cast<const X*>(problem.grad_sum) +
                                                          problem.grad_sum_rows.offset(row);
    X* grad_x = static_cast<X*>(problem.grad_x) + problem.grad_x_rows.offset(row);
    float2 sums = make_float2(0.0F, 0.0F);
    for (int64_t column = threadIdx.x * kSize; column < columns; column += step) {
      add_sums(sums, load_any<kAligned, kSize>(x, column, columns),
               load_any<kAligned, kSize>(incoming, column, columns),
               load_any<kAligned, kSize>(weight, column, columns), offset);
    }
    sums = sum_pair_over_block(sums, shared_sums[turn], num_warps);
    turn ^= 1;
    const RowFactors factors = factors_of(sums, problem);
    for (int64_t column = threadIdx.x * kSize; column < columns; column += step) {
      Vec<float, kSize> shares = {};
      if (row != blockIdx.x) {
        shares = load_any<kAligned, kSize>(partial, column, columns);
      }
      Vec<X, kSize> addend;
      if (grad_sum != nullptr) {
        addend = load_any<kAligned, kSize>(grad_sum, column, columns);
      }
      const Vec<X, kSize> result =
          backward_vector(load_any<kAligned, kSize>(x, column, columns),
                          load_any<kAligned, kSize>(incoming, column, columns),
                          load_any<kAligned, kSize>(weight, column, columns), offset, factors,
                          grad_sum != nullptr ? &addend : nullptr, shares.data);
      store_any<kAligned>(grad_x, column, columns, result);
      store_any<kAligned>(partial, column, columns, shares);
    }
  }
}

// Columns of a block, and the turns that its threads take with the parts.
inline constexpr int kWeightColumns = 32;
inline constexpr int kWeightTurns = 32;

template <typename W>
__global__ void __launch_bounds__(kWeightColumns* kWeightTurns)
    rms_norm_bwd_weight_kernel(const __grid_constant__ BackwardProblem problem) {
  __shared__ float sums[kWeightTurns][kWeightColumns + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWeightColumns + threadIdx.x;
  float sum = 0;
  if (column < problem.columns) {
    for (int64_t part = threadIdx.y; part < problem.parts; part += kWeightTurns) {
      sum += problem.partial[part * problem.columns + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  // Warp w adds up the turns of column w.
  const float total = sum_over_warp(sums[threadIdx.x][threadIdx.y]);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWeightColumns + threadIdx.y;
  if (threadIdx.x == 0 && own < problem.columns) {
    static_cast<W*>(problem.grad_weight)[own] = from_float<W>(total);
  }
}

}  // namespace graft_kernels::rms_norm

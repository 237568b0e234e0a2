// RMSNorm's backward on CUDA. Device code on raw pointers; no Torch. Two kernels:
//   rows     rows that fit on chip, one vector per thread: a group of lanes or a block holds a row;
//            every tensor is read once, and the next row is on its way while the current one is
//            reduced
//   looping  any row length, layout, alignment and dtype of the weight; reads the row twice
// A block takes rows in turn and keeps its share of the weight's gradient to itself until the end,
// so that no two blocks ever add to one number: the result has one order. rms_norm_weight_kernel.cuh adds the
// shares up.
#pragma once

#include "kernels/rms-norm/rms_norm_long_kernel.cuh"

namespace graft_kernels::rms_norm {

// Threads on a multiprocessor at once: 64 registers each.
inline constexpr int kBackwardThreads = 1024;

// Sums over kWidth neighbouring lanes of two values at once.
template <int kWidth>
__device__ __forceinline__ float2 sum_pair_over_lanes(float2 value) {
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value.x += __shfl_xor_sync(0xffffffffU, value.x, distance);
    value.y += __shfl_xor_sync(0xffffffffU, value.y, distance);
  }
  return value;
}

// Sums over a block of two values at once; every thread gets both. `shared` has 2 * kWarp slots,
// those beyond the block's warps zero; the caller alternates between two of them, so that one
// barrier a call is enough.
__device__ __forceinline__ float2 sum_pair_over_block(float2 value, float* shared) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  float sum = sum_pair_halves(value);
  if (lane % (kWarp / 2) == 0) {
    shared[(lane == 0 ? 0 : kWarp) + warp] = sum;
  }
  __syncthreads();
  // Lanes 0-15 add the sums of x, two warps each; lanes 16-31 those of y.
  const float* own = shared + (lane < kWarp / 2 ? 0 : kWarp) + lane % (kWarp / 2);
  sum = own[0] + own[kWarp / 2];
#pragma unroll
  for (int distance = kWarp / 4; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffU, sum, distance);
  }
  return make_float2(__shfl_sync(0xffffffffU, sum, 0), __shfl_sync(0xffffffffU, sum, kWarp / 2));
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
    const float norm = to_float(x.data[i]) * factors.inverse;
    const float from_above = to_float(incoming.data[i]);
    const float gradient = from_above * (offset + to_float(weight.data[i])) * factors.inverse;
    float value = fmaf(-norm, factors.pull, gradient);
    if (grad_sum != nullptr) {
      value += to_float(grad_sum->data[i]);
    }
    result.data[i] = from_float<X>(value);
    shares[i] = fmaf(from_above, norm, shares[i]);
  }
  return result;
}

// What a thread holds of a row.
template <typename X, int kSize, bool kAdd>
struct RowVectors {
  Vec<X, kSize> x;
  Vec<X, kSize> incoming;
  Vec<X, kAdd ? kSize : 1> grad_sum;
};

template <typename X, int kSize, bool kAdd>
__device__ __forceinline__ RowVectors<X, kSize, kAdd> load_row(const BackwardProblem& problem,
                                                               int64_t row, int64_t column) {
  RowVectors<X, kSize, kAdd> vectors = {};
  if (row < problem.rows && column < problem.columns) {
    vectors.x = load_streaming<X, kSize>(static_cast<const X*>(problem.x) +
                                         row * problem.x_rows.stride[0] + column);
    vectors.incoming = load_streaming<X, kSize>(static_cast<const X*>(problem.grad_out) +
                                                row * problem.grad_out_rows.stride[0] + column);
    if constexpr (kAdd) {
      vectors.grad_sum = load_streaming<X, kSize>(static_cast<const X*>(problem.grad_sum) +
                                                  row * problem.grad_sum_rows.stride[0] + column);
    }
  }
  return vectors;
}

// Writes the shares of a block into its row of `partial`; groups with rows of their own first add up,
// in turn.
template <int kGroups, int kLanes, int kSize>
__device__ __forceinline__ void store_shares(const BackwardProblem& problem, float* partial,
                                             int64_t column, const float* shares) {
  if constexpr (kGroups > 1) {
    __shared__ float shared_shares[kGroups][kLanes * kSize];
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      shared_shares[threadIdx.x / kLanes][lane * kSize + i] = shares[i];
    }
    __syncthreads();
    for (int own = threadIdx.x; own < problem.columns; own += blockDim.x) {
      float total = 0;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        total += shared_shares[group][own];
      }
      partial[own] = total;
    }
  } else if (column < problem.columns) {
    Vec<float, kSize> share;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      share.data[i] = shares[i];
    }
    store_vector(partial + column, share);
  }
}

// X is the dtype of x, weight and all gradients. kLanes > 0: groups of that many lanes take a row
// each, in blocks of kMaxThreads; kLanes = 0: a block takes a row.
template <typename X, bool kAdd, int kLanes, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, kBackwardThreads / kMaxThreads)
    rms_norm_bwd_rows_kernel(const __grid_constant__ BackwardProblem problem) {
  constexpr int kSize = kVectorSize<X>;
  constexpr int kGroups = kLanes > 0 ? kMaxThreads / kLanes : 1;
  __shared__ float shared_sums[2][2 * kWarp];
  const int64_t team = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % (kLanes > 0 ? kLanes : kMaxThreads);
  const int64_t column = static_cast<int64_t>(lane) * kSize;
  const int64_t step = problem.parts * kGroups;
  int64_t row = team * kGroups + (kLanes > 0 ? threadIdx.x / kLanes : 0);
  RowVectors<X, kSize, kAdd> current = load_row<X, kSize, kAdd>(problem, row, column);

  Vec<float, kSize> weight = {};
  if (column < problem.columns) {
    const float offset = problem.variant == Variant::kZeroCentered ? 1.0F : 0.0F;
    const Vec<X, kSize> stored =
        load_shared_data<X, kSize>(static_cast<const X*>(problem.weight) + column);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      weight.data[i] = offset + to_float(stored.data[i]);
    }
  }
  if constexpr (kLanes == 0) {
    if (threadIdx.x < 2 * kWarp) {
      shared_sums[0][threadIdx.x] = shared_sums[1][threadIdx.x] = 0.0F;
    }
    if (blockDim.x < 2 * kWarp && threadIdx.x < kWarp) {
      shared_sums[0][kWarp + threadIdx.x] = shared_sums[1][kWarp + threadIdx.x] = 0.0F;
    }
    __syncthreads();
  }

  float shares[kSize] = {};
  int turn = 0;
  // All groups of a block take the same number of turns: a row beyond the last is a row of zeros.
  for (int64_t first = team * kGroups; first < problem.rows; first += step) {
    const RowVectors<X, kSize, kAdd> next = load_row<X, kSize, kAdd>(problem, row + step, column);
    float2 sums = make_float2(0.0F, 0.0F);
    add_sums(sums, current.x, current.incoming, weight, 0.0F);
    if constexpr (kLanes > 0) {
      sums = sum_pair_over_lanes<kLanes>(sums);
    } else {
      sums = sum_pair_over_block(sums, shared_sums[turn]);
      turn ^= 1;
    }
    const RowFactors factors = factors_of(sums, problem);
    forget(current.x);
    forget(current.incoming);
    const Vec<X, kSize>* grad_sum = nullptr;
    if constexpr (kAdd) {
      grad_sum = &current.grad_sum;
    }
    const Vec<X, kSize> result =
        backward_vector(current.x, current.incoming, weight, 0.0F, factors, grad_sum, shares);
    if (row < problem.rows && column < problem.columns) {
      store_vector(static_cast<X*>(problem.grad_x) + row * problem.grad_x_rows.stride[0] + column,
                   result);
    }
    current = next;
    row += step;
  }
  store_shares<kGroups, kLanes, kSize>(problem, problem.partial + team * problem.columns, column,
                                       shares);
}

// One row per block at a time. A thread owns the same columns in every row.
template <typename X, typename W, typename Out, bool kAligned>
__global__ void rms_norm_bwd_looping_kernel(const __grid_constant__ BackwardProblem problem) {
  constexpr int kSize = kVectorSize<X>;
  __shared__ float shared_sums[2][2 * kWarp];
  for (int slot = threadIdx.x; slot < 2 * kWarp; slot += blockDim.x) {
    shared_sums[0][slot] = shared_sums[1][slot] = 0.0F;
  }
  __syncthreads();
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
    sums = sum_pair_over_block(sums, shared_sums[turn]);
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

}  // namespace graft_kernels::rms_norm

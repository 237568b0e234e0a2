// Attention of any dtype, head size and stride without tensor cores, and the merge of parts. Device
// code, no Torch.
#pragma once

#include "kernels/attention/attention_place.cuh"

namespace graft_kernels::attention {

inline constexpr int kPlainThreads = 128;
inline constexpr int kMergeGroup = 32;   // parts in flight together
inline constexpr int kPlainKeys = 4;     // in flight together
inline constexpr int kPlainColumns = 8;  // of a lane: 32 * 8 = the longest head

__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFU, value, distance);
  }
  return value;
}

// A row's running softmax; lane l holds columns l, l + 32, ….
struct LaneState {
  float out[kPlainColumns] = {};
  float largest = -INFINITY;
  float sum = 0.0F;
};

template <typename T, bool kPaged>
__device__ __forceinline__ void work_keys(const DecodeProblem& problem, const Place& place,
                                          const RowView& view, const float (&query)[kPlainColumns],
                                          int first, LaneState& state) {
  const Problem& base = problem.base;
  const int lane = threadIdx.x % 32, head_dim = static_cast<int>(base.head_dim);
  float scores[kPlainKeys];
  float largest = state.largest;
#pragma unroll
  for (int index = 0; index < kPlainKeys; ++index) {
    float dot = 0.0F;
    if (first + index < place.end) {
      const T* key = static_cast<const T*>(base.key) +
                     key_offset<kPaged>(problem, place, base.key_stride, first + index);
#pragma unroll
      for (int part = 0; part < kPlainColumns; ++part) {
        const int column = part * 32 + lane;
        dot += column < head_dim ? query[part] * to_float(key[column]) : 0.0F;
      }
    }
    scores[index] = finish_score<T>(problem, place, view, first + index, sum_over_warp(dot));
    largest = fmaxf(largest, scores[index]);
  }
  const float factor = exp2f(state.largest - origin_of(largest));
  state.largest = largest;
  state.sum *= factor;
#pragma unroll
  for (int part = 0; part < kPlainColumns; ++part) {
    state.out[part] *= factor;
  }
  // These keys sum among themselves first: a running sum over thousands
  // of keys rounds each of them at its size.
  LaneState own;
#pragma unroll
  for (int index = 0; index < kPlainKeys; ++index) {
    if (scores[index] == -INFINITY) {
      continue;  // hidden: whatever lies there stays out
    }
    const float weight = exp2f(scores[index] - origin_of(largest));
    own.sum += weight;
    const T* value = static_cast<const T*>(base.value) +
                     key_offset<kPaged>(problem, place, base.value_stride, first + index);
#pragma unroll
    for (int part = 0; part < kPlainColumns; ++part) {
      const int column = part * 32 + lane;
      own.out[part] += column < head_dim ? weight * to_float(value[column]) : 0.0F;
    }
  }
  state.sum += own.sum;
#pragma unroll
  for (int part = 0; part < kPlainColumns; ++part) {
    state.out[part] += own.out[part];
  }
}

template <typename T>
__device__ __forceinline__ void store_row(const DecodeProblem& problem, const Place& place,
                                          const RowView& view, int row, const LaneState& state) {
  const int lane = threadIdx.x % 32, head_dim = static_cast<int>(problem.base.head_dim);
  if (problem.splits > 1) {
    float* part = part_row(problem, place.block, place.split, row);
    part[0] = state.largest;
    part[1] = state.sum;
#pragma unroll
    for (int column = 0; column < kPlainColumns; ++column) {
      if (column * 32 + lane < head_dim) {
        part[2 + column * 32 + lane] = state.out[column];
      }
    }
    return;
  }
  const RowResult result = finish_row<T>(problem, view.head, state.largest, state.sum);
  T* out = out_row<T>(problem, place.batch, view);
#pragma unroll
  for (int column = 0; column < kPlainColumns; ++column) {
    if (column * 32 + lane < head_dim) {
      out[column * 32 + lane] = from_float<T>(state.out[column] * result.factor);
    }
  }
  if (lane == 0) {
    store_lse(problem, place.batch, view, result.lse);
  }
}

// A warp for every fourth row of the block.
template <typename T, bool kPaged>
__global__ void __launch_bounds__(kPlainThreads)
    attention_decode_plain_kernel(const __grid_constant__ DecodeProblem problem) {
  allow_next_kernel();
  wait_for_kernel_before();
  const Problem& base = problem.base;
  const Place place = place_of(problem);
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < place.rows; row += kPlainThreads / 32) {
    const RowView view = view_row(problem, place, row);
    const T* from = static_cast<const T*>(base.query) + place.batch * base.query_stride[0] +
                    view.query * base.query_stride[1] + view.head * base.query_stride[2];
    float query[kPlainColumns];
#pragma unroll
    for (int part = 0; part < kPlainColumns; ++part) {
      const int column = part * 32 + lane;
      query[part] = column < base.head_dim ? to_float(from[column]) : 0.0F;
    }
    LaneState state;
    for (int first = place.begin; first < place.end; first += kPlainKeys) {
      work_keys<T, kPaged>(problem, place, view, query, first, state);
    }
    store_row<T>(problem, place, view, row, state);
  }
}

// Over the block's threads, in a fixed order; everyone gets the result.
__device__ __forceinline__ float merge_largest(float value, float* shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, distance));
  }
  shared[threadIdx.x / 32] = value;
  __syncthreads();
  return fmaxf(fmaxf(shared[0], shared[1]), fmaxf(shared[2], shared[3]));
}

__device__ __forceinline__ float merge_sums(float value, float* shared) {
  value = sum_over_warp(value);
  shared[4 + threadIdx.x / 32] = value;
  __syncthreads();
  return (shared[4] + shared[5]) + (shared[6] + shared[7]);
}

// One block of threads per row: the parts of its keys become its result. A thread has columns
// t, t + threads, ….
template <typename T>
__global__ void __launch_bounds__(kPlainThreads)
    attention_decode_merge_kernel(const __grid_constant__ DecodeProblem problem) {
  static_assert(kMaxSplits == kPlainThreads);
  __shared__ float factors[kMaxSplits];
  __shared__ float values[2 * kPlainThreads / 32];
  const unsigned rows = static_cast<unsigned>(problem.base.rows());
  const unsigned head = blockIdx.x / rows, row = blockIdx.x - head * rows;  // head: of all entries
  const int64_t block = static_cast<int64_t>(head) * problem.base.row_blocks() + row / kBlockRows;
  const int thread = threadIdx.x, splits = problem.splits;
  const float* parts = part_row(problem, block, 0, static_cast<int>(row % kBlockRows));
  const int64_t stride = kBlockRows * (problem.base.head_dim + 2);
  allow_next_kernel();
  wait_for_kernel_before();
  float2 own = {-INFINITY, 0.0F};
  if (thread < splits) {
    own = {parts[thread * stride], parts[thread * stride + 1]};
  }
  const float largest = merge_largest(own.x, values);
  own.x = exp2f(own.x - origin_of(largest));
  factors[thread] = own.x;
  const float sum = merge_sums(own.x * own.y, values);
  Place place = {};
  const unsigned key_heads = static_cast<unsigned>(problem.base.key_heads);
  place.batch = head / key_heads;
  place.head = head % key_heads;
  place.row = static_cast<int>(row);
  const RowView view = view_row(problem, place, 0);
  const RowResult result = finish_row<T>(problem, view.head, largest, sum);
  T* out = out_row<T>(problem, place.batch, view);
  for (int column = thread; column < problem.base.head_dim; column += kPlainThreads) {
    float value = 0.0F;
    // Whole groups, so that their loads are in flight together.
    for (int first = 0; first < splits; first += kMergeGroup) {
      float group[kMergeGroup];
#pragma unroll
      for (int index = 0; index < kMergeGroup; ++index) {
        const int split = first + index;
        group[index] = split < splits ? parts[split * stride + 2 + column] : 0.0F;
      }
#pragma unroll
      for (int index = 0; index < kMergeGroup; ++index) {
        value += group[index] * factors[first + index];
      }
    }
    out[column] = from_float<T>(value * result.factor);
  }
  if (thread == 0) {
    store_lse(problem, place.batch, view, result.lse);
  }
}

}  // namespace graft_kernels::attention

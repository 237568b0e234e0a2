// Rows of cross-entropy on CUDA: one block per row, which reads the logits once and keeps what fits in shared memory for
// the gradient; the rest comes from the second-level cache. Long rows that train on Hopper: loss_ring_kernel.cuh.
// Device code, no Torch.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/vec.cuh"
#include "kernels/loss/loss.h"

namespace graft_kernels::loss {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 1024;
// Vectors that a thread has under way at a time.
inline constexpr int kUnroll = 4;
// A thread's exponentials are added in blocks of this many vectors, then the blocks.
inline constexpr int kVectorsPerBlock = 16;

// exp(x - shift) summed, with the largest x so far as the shift.
struct Online {
  float top;
  float sum;
};

__device__ __forceinline__ float shift_of(float top) { return top == -INFINITY ? 0.0F : top; }

__device__ __forceinline__ Online merge(Online a, Online b) {
  const float top = fmaxf(a.top, b.top);
  const float shift = shift_of(top);
  // An empty part has nothing to scale: exp(-inf) is zero.
  return {top, a.sum * __expf(a.top - shift) + b.sum * __expf(b.top - shift)};
}

__device__ __forceinline__ Online merge_over_warp(Online value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Online other{__shfl_xor_sync(0xffffffffU, value.top, distance),
                       __shfl_xor_sync(0xffffffffU, value.sum, distance)};
    // Both lanes of a pair must get the same bits: the lower lane's part comes first.
    const bool is_lower = (threadIdx.x & distance) == 0;
    value = is_lower ? merge(value, other) : merge(other, value);
  }
  return value;
}

// The block's whole sum, in every thread; `plain` is added up beside it.
__device__ __forceinline__ Online merge_over_block(Online value, float* plain) {
  __shared__ Online parts[kWarp];
  __shared__ float sums[kWarp];
  value = merge_over_warp(value);
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    *plain += __shfl_xor_sync(0xffffffffU, *plain, distance);
  }
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (lane == 0) {
    parts[warp] = value;
    sums[warp] = *plain;
  }
  __syncthreads();
  const int num_warps = blockDim.x / kWarp;
  value = lane < num_warps ? parts[lane] : Online{-INFINITY, 0.0F};
  *plain = lane < num_warps ? sums[lane] : 0.0F;
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    *plain += __shfl_xor_sync(0xffffffffU, *plain, distance);
  }
  return merge_over_warp(value);
}

// The soft cap, its inverse beside it; inverse 0 where there is none.
struct Cap {
  float size, inverse;

  __device__ __forceinline__ bool is_set() const { return inverse != 0.0F; }
  __device__ __forceinline__ float apply(float logit) const {
    return is_set() ? size * tanhf(logit * inverse) : logit;
  }
  __device__ __forceinline__ float slope(float capped) const {
    const float share = capped * inverse;
    return 1.0F - share * share;
  }
};

// A thread's running sums over its share of a row.
class Running {
 public:
  template <typename T, int kSize>
  __device__ __forceinline__ void add(const Vec<T, kSize>& vector, const Cap& cap, bool with_mean) {
    float z[kSize];
    float top = -INFINITY;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      z[i] = to_float(vector.data[i]);
    }
    if (cap.is_set()) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        z[i] = cap.apply(z[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      top = fmaxf(top, z[i]);
    }
    if (top > block_.top) {
      const float scale = __expf(block_.top - top);
      block_ = {top, block_.sum * scale};
    }
    const float shift = shift_of(block_.top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      sum += __expf(z[i] - shift);
    }
    block_.sum += sum;
    if (with_mean) {
      float plain = 0;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        plain += z[i];
      }
      plain_ += plain;
    }
    if (++count_ == kVectorsPerBlock) {
      flush();
    }
  }
  __device__ __forceinline__ Online total() {
    flush();
    return total_;
  }
  __device__ __forceinline__ float plain() const { return plain_; }

 private:
  __device__ __forceinline__ void flush() {
    total_ = merge(total_, block_);
    block_ = {total_.top, 0.0F};
    count_ = 0;
  }

  Online total_{-INFINITY, 0.0F}, block_{-INFINITY, 0.0F};
  float plain_ = 0;
  int count_ = 0;
};

// What a gradient is made of.
struct RowGradient {
  float lse, factor, spread, target;
  int64_t label;
  Cap cap;

  // `target` is taken off where the label is.
  template <bool kCapped>
  __device__ __forceinline__ float at(float logit, float off) const {
    const float z = kCapped ? cap.apply(logit) : logit;
    const float share = __expf(z - lse) - spread - off;
    return factor * (kCapped ? share * cap.slope(z) : share);
  }
  template <bool kCapped, typename T, int kSize>
  __device__ __forceinline__ Vec<T, kSize> every(const Vec<T, kSize>& vector,
                                                 int64_t column) const {
    Vec<T, kSize> result;
    const int64_t place = label - column;
    if (place < 0 || place >= kSize) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        result.data[i] = from_float<T>(at<kCapped>(to_float(vector.data[i]), 0.0F));
      }
      return result;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float off = static_cast<int>(place) == i ? target : 0.0F;
      result.data[i] = from_float<T>(at<kCapped>(to_float(vector.data[i]), off));
    }
    return result;
  }
  // One question about the soft cap and one about the label per vector, none per element.
  template <typename T, int kSize>
  __device__ __forceinline__ Vec<T, kSize> of(const Vec<T, kSize>& vector, int64_t column) const {
    return cap.is_set() ? every<true>(vector, column) : every<false>(vector, column);
  }
};

template <typename T>
__device__ __forceinline__ void fill_row(T* grad, int64_t columns, float value) {
  for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
    grad[column] = from_float<T>(value);
  }
}

// Reads a row for its sums; vectors below `cached` stay in shared memory.
template <typename T, int kSize>
__device__ __forceinline__ void read_row(const T* row, int64_t columns, Vec<T, kSize>* cache,
                                         int cached, const Cap& cap, bool with_mean,
                                         Running& running) {
  const int64_t vectors = columns / kSize;
  for (int64_t first = threadIdx.x; first < vectors; first += int64_t{kUnroll} * blockDim.x) {
    Vec<T, kSize> loaded[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t index = first + int64_t{i} * blockDim.x;
      if (index < vectors) {
        loaded[i] = load_streaming<T, kSize>(row + index * kSize);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t index = first + int64_t{i} * blockDim.x;
      if (index < vectors) {
        if (index < cached) {
          cache[index] = loaded[i];
        }
        running.add(loaded[i], cap, with_mean);
      }
    }
  }
  const int64_t tail = vectors * kSize + threadIdx.x;
  if (tail < columns) {
    running.add(Vec<T, 1>{{row[tail]}}, cap, with_mean);
  }
}

// Writes a row's gradient; every element is read by the thread that writes it, so that the row may
// be overwritten.
template <typename T, int kSize>
__device__ __forceinline__ void write_row(const T* row, T* grad, int64_t columns,
                                          const Vec<T, kSize>* cache, int cached,
                                          const RowGradient& gradient) {
  const int64_t vectors = columns / kSize;
  for (int64_t first = threadIdx.x; first < vectors; first += int64_t{kUnroll} * blockDim.x) {
    Vec<T, kSize> loaded[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t index = first + int64_t{i} * blockDim.x;
      if (index < vectors) {
        loaded[i] = index < cached ? cache[index] : load_streaming<T, kSize>(row + index * kSize);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t index = first + int64_t{i} * blockDim.x;
      if (index < vectors) {
        store_vector<T, kSize>(grad + index * kSize, gradient.of(loaded[i], index * kSize));
      }
    }
  }
  const int64_t tail = vectors * kSize + threadIdx.x;
  if (tail < columns) {
    grad[tail] = gradient.of(Vec<T, 1>{{row[tail]}}, tail).data[0];
  }
}

// One row; `cached` is how many vectors the block's dynamic shared memory holds.
template <typename T, int kSize, Mode kMode>
__device__ __forceinline__ void compute_row(const Problem& problem, int64_t row, int cached) {
  extern __shared__ uint4 shared[];
  Vec<T, kSize>* cache = reinterpret_cast<Vec<T, kSize>*>(shared);
  const int64_t columns = problem.columns;
  const T* logits = static_cast<const T*>(problem.logits) + problem.logits_rows.offset(row);
  T* grad = static_cast<T*>(problem.grad) + problem.grad_rows.offset(row);
  const int64_t label = problem.labels[problem.label_rows.offset(row)];
  const bool is_first = threadIdx.x == 0;
  if (label == problem.options.ignore_index || label < 0 || label >= columns) {
    // Nothing may wait for the device here: a label out of range shows as NaN.
    const float value = label == problem.options.ignore_index ? 0.0F : NAN;
    if (kMode != Mode::kBackward && is_first) {
      problem.loss[row] = value;
      problem.lse[row] = value;
    }
    if constexpr (kMode != Mode::kForward) {
      fill_row(grad, columns, value);
    }
    return;
  }
  const float softcap = problem.options.softcap, smoothing = problem.options.smoothing;
  const Cap cap{softcap, softcap > 0.0F ? 1.0F / softcap : 0.0F};
  float lse = 0;
  if constexpr (kMode == Mode::kBackward) {
    lse = problem.lse[row];
  } else {
    const float label_z = cap.apply(to_float(logits[label]));
    Running running;
    read_row<T, kSize>(logits, columns, cache, cached, cap, smoothing > 0.0F, running);
    const Online own = running.total();
    float plain = running.plain();
    // Every thread has read the label's logit when the row may be overwritten: a barrier lies in
    // between.
    const Online whole = merge_over_block(own, &plain);
    lse = shift_of(whole.top) + logf(whole.sum);
    if (is_first) {
      const float mean = plain / static_cast<float>(columns);
      problem.lse[row] = lse;
      problem.loss[row] =
          smoothing > 0.0F ? (lse - label_z) + smoothing * (label_z - mean) : lse - label_z;
    }
  }
  if constexpr (kMode != Mode::kForward) {
    const float factor = problem.grad_loss[problem.grad_loss_rows.offset(row)];
    const RowGradient gradient{
        lse, factor, smoothing / static_cast<float>(columns), 1.0F - smoothing, label, cap};
    write_row<T, kSize>(logits, grad, columns, cache, kMode == Mode::kTrain ? cached : 0, gradient);
  }
}

template <typename T, int kSize, Mode kMode>
__global__ void __launch_bounds__(kMaxThreads)
    cross_entropy_kernel(const Problem problem, const int cached) {
  compute_row<T, kSize, kMode>(problem, blockIdx.x, cached);
}

}  // namespace graft_kernels::loss

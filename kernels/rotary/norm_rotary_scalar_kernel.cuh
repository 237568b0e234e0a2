// RMSNorm of heads and their rotation on CUDA, element by element: heads that are not made of whole aligned vectors, or
// are longer than a warp holds, and weights wider than the heads. Device code on raw pointers; no Torch.
#pragma once

#include "kernels/rotary/norm_rotary_kernel.cuh"
#include "kernels/rotary/rotary_kernel.cuh"

namespace graft_kernels::rotary {

inline constexpr int kScalarWarps = 4;  // of a block

// A head as its norm leaves it, element by element.
template <typename T, typename W>
struct NormedElements {
  const T* in;
  const W* weight;
  float inverse;
  rms_norm::Variant variant;

  __device__ __forceinline__ T at(int element) const {
    const float x = to_float(in[element]), factor = to_float(weight[element]);
    return from_float<T>(
        variant == rms_norm::Variant::kCastBeforeWeight
            ? rms_norm::scale<true, T>(x, inverse, factor, false)
            : rms_norm::scale<false, T>(x, inverse, factor,
                                        variant == rms_norm::Variant::kZeroCentered));
  }
};

// The order of rms_norm's rows: vector i belongs to lane i % 32.
template <typename T>
__device__ __forceinline__ float sum_of_squares(const T* in, int head_dim, int lane) {
  constexpr int kSize = kVectorSize<T>;
  float squares = 0;
  for (int first = lane * kSize; first < head_dim; first += rms_norm::kWarp * kSize) {
    float own = 0;
    for (int element = first; element < min(first + kSize, head_dim); ++element) {
      own = fmaf(to_float(in[element]), to_float(in[element]), own);
    }
    squares += own;
  }
  return rms_norm::sum_over_warp(squares);
}

// A warp for each head of query, key and, in an append, of the value.
template <typename T, typename S, typename W>
__global__ void __launch_bounds__(kScalarWarps* rms_norm::kWarp)
    norm_rotary_scalar_kernel(const __grid_constant__ AppendProblem problem) {
  const Problem& base = problem.base;
  const int lane = static_cast<int>(threadIdx.x) % rms_norm::kWarp;
  const int head_dim = static_cast<int>(base.head_dim);
  const int rotated = static_cast<int>(base.rotary_dim), half = rotated / 2;
  const int num_query = static_cast<int>(base.heads[0].count);
  const int num_key = static_cast<int>(base.heads[1].count);
  const int num_values = problem.values == nullptr ? 0 : num_key;
  const int num_heads = num_query + num_key + num_values;
  const int64_t items = base.batch * base.length * num_heads;
  let_next_start();
  wait_for_previous();
  for (int64_t item = int64_t{blockIdx.x} * kScalarWarps + threadIdx.x / rms_norm::kWarp;
       item < items; item += int64_t{gridDim.x} * kScalarWarps) {
    const int64_t index = item / num_heads;
    const int head = static_cast<int>(item - index * num_heads);
    const TokenPlace<S> token = place_of<S>(problem, index);
    if (!token.is_there) {
      continue;
    }
    if (head >= num_query + num_key) {
      const int own = head - num_query - num_key;
      for (int i = lane; i < head_dim; i += rms_norm::kWarp) {
        *cached_value_of<T>(problem, token, own, i) = *value_of<T>(problem, token, own, i);
      }
      continue;
    }
    const T* in = in_of<T>(problem, token, head);
    T* out = out_of<T>(problem, token, head);
    const float squares = sum_of_squares(in, head_dim, lane);
    const NormedElements<T, W> normed{
        in, static_cast<const W*>(base.norm.weight[head < num_query ? 0 : 1]),
        rsqrtf(squares / static_cast<float>(head_dim) + base.norm.eps), base.norm.variant};
    // A pair is read and written by one lane, so that a head may be written where it was read.
    for (int i = lane; i < half; i += rms_norm::kWarp) {
      const int a = base.interleaved ? 2 * i : i, b = base.interleaved ? 2 * i + 1 : half + i;
      const PairOf<T, 1> pair{{normed.at(a)}, {normed.at(b)}};
      const auto result = rotate<false, T, S, 1>(pair, PairOf<S, 1>{{token.cos[a]}, {token.cos[b]}},
                                                 PairOf<S, 1>{{token.sin[a]}, {token.sin[b]}});
      out[a] = result.first.data[0];
      out[b] = result.second.data[0];
    }
    for (int i = rotated + lane; i < head_dim; i += rms_norm::kWarp) {
      out[i] = normed.at(i);
    }
  }
}

}  // namespace graft_kernels::rotary

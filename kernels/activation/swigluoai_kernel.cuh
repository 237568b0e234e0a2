// gpt-oss' activation on CUDA (see swigluoai.cpp). Device code on raw pointers; no Torch. Pairs are counted row by row in
// vectors; every thread takes kPairUnroll vectors, a block apart from each other, and loads all before it computes.
#pragma once

#include "kernels/activation/activation_kernel.cuh"
#include "kernels/activation/swigluoai.h"

namespace graft_kernels::activation {

// 48 bytes a vector and direction: two vectors keep as much on its way as the other activations do.
inline constexpr int kPairUnroll = 2;

struct PairOffsets {
  int64_t input, grad_out, out;
};

template <bool kBackward, Layout kLayout, int kSize>
__device__ __forceinline__ PairOffsets pair_offsets(const SwigluoaiProblem& problem, int64_t index,
                                                    unsigned per_row) {
  constexpr int kOut = kBackward ? 2 : 1;
  if constexpr (kLayout == Layout::kFlat) {
    const int64_t pair = index * kSize;
    return {2 * pair, pair, kOut * pair};
  } else if constexpr (kLayout == Layout::kRows) {
    const unsigned row = static_cast<unsigned>(index) / per_row;
    const int64_t pair = static_cast<int64_t>(static_cast<unsigned>(index) - row * per_row) * kSize;
    return {row * problem.input_rows.stride[0] + 2 * pair,
            row * problem.grad_out_rows.stride[0] + pair,
            row * problem.out_rows.stride[0] + kOut * pair};
  } else {
    const int64_t row = index / problem.columns;
    const int64_t pair = index - row * problem.columns;
    return {problem.input_rows.offset(row) + 2 * pair, problem.grad_out_rows.offset(row) + pair,
            problem.out_rows.offset(row) + kOut * pair};
  }
}

// 1 / (1 + exp(-x)), correctly rounded as eager evaluation has it.
template <typename T>
__device__ __forceinline__ float rounded_logistic(float x) {
  const float denominator = 1.0F + expf(-x);
  if constexpr (sizeof(T) == 2) {
    if (denominator < 0x1p126F) {
      return divide_ordinary(1.0F, denominator);
    }
  }
  return 1.0F / denominator;
}

// Comparisons keep NaN.
__device__ __forceinline__ float at_most(float x, float limit) { return x > limit ? limit : x; }
__device__ __forceinline__ float clamped(float x, float limit) {
  return at_most(x < -limit ? -limit : x, limit);
}

template <typename T>
__device__ __forceinline__ T swigluoai_value(T gate_in, T up_in, float alpha, float limit) {
  const float gate = at_most(to_float(gate_in), limit), up = clamped(to_float(up_in), limit);
  const float share = round_to<T>(rounded_logistic<T>(round_to<T>(__fmul_rn(gate, alpha))));
  const float glu = round_to<T>(__fmul_rn(gate, share));
  return from_float<T>(__fmul_rn(round_to<T>(__fadd_rn(up, 1.0F)), glu));
}

template <typename T>
__device__ __forceinline__ void swigluoai_gradient(T gate_in, T up_in, T grad_out_in, float alpha,
                                                   float limit, T& grad_gate, T& grad_up) {
  const float gate_free = to_float(gate_in), up_free = to_float(up_in);
  const float gate = at_most(gate_free, limit), up = clamped(up_free, limit);
  const float grad_out = to_float(grad_out_in);
  const float share = sizeof(T) == 4
                          ? 1.0F / (1.0F + expf(-alpha * gate))
                          : __fdividef(1.0F, 1.0F + __expf(-alpha * gate));  // zero beyond 2^126
  const float slope = share * (1.0F + alpha * gate * (1.0F - share));
  grad_gate = from_float<T>(gate_free <= limit ? grad_out * (up + 1.0F) * slope : 0.0F);
  grad_up = from_float<T>(fabsf(up_free) <= limit ? grad_out * (gate * share) : 0.0F);
}

template <bool kBackward, typename T, int kSize>
__device__ __forceinline__ void swigluoai_vector(const Vec<T, 2 * kSize>& pairs,
                                                 const Vec<T, kSize>& grad_out, float alpha,
                                                 float limit, T* to) {
  if constexpr (kBackward) {
    Vec<T, 2 * kSize> gradient;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      swigluoai_gradient(pairs.data[2 * i], pairs.data[2 * i + 1], grad_out.data[i], alpha, limit,
                         gradient.data[2 * i], gradient.data[2 * i + 1]);
    }
    store_vector(to, gradient);
  } else {
    Vec<T, kSize> value;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      value.data[i] = swigluoai_value(pairs.data[2 * i], pairs.data[2 * i + 1], alpha, limit);
    }
    store_vector(to, value);
  }
}

template <bool kBackward, typename T, Layout kLayout>
__global__ void __launch_bounds__(kThreads)
    swigluoai_kernel(const __grid_constant__ SwigluoaiProblem problem) {
  constexpr int kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int kSteps = kLayout == Layout::kAny ? 1 : kPairUnroll;
  const T* input = static_cast<const T*>(problem.input);
  const T* grad_out = static_cast<const T*>(problem.grad_out);
  T* out = static_cast<T*>(problem.out);
  const float alpha = problem.alpha, limit = round_to<T>(problem.limit);
  const int64_t per_row = problem.columns / kSize;
  const int64_t total = per_row * problem.rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kSteps) + threadIdx.x;
  let_next_start();
  wait_for_previous();

  // One by one, pairs need not lie at multiples of their size.
  constexpr int kAtOnce = kLayout == Layout::kAny ? 1 : 2 * kSize;
  Vec<T, 2 * kSize> pairs[kSteps];
  Vec<T, kSize> incoming[kSteps] = {};
  int64_t targets[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t index = first + step * kThreads;
    targets[step] = -1;
    if (index < total) {
      const PairOffsets offsets =
          pair_offsets<kBackward, kLayout, kSize>(problem, index, static_cast<unsigned>(per_row));
#pragma unroll
      for (int part = 0; part < 2 * kSize; part += kAtOnce) {
        const Vec<T, kAtOnce> some = load_streaming<T, kAtOnce>(input + offsets.input + part);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          pairs[step].data[part + i] = some.data[i];
        }
      }
      if constexpr (kBackward) {
        incoming[step] = load_streaming<T, kSize>(grad_out + offsets.grad_out);
      }
      targets[step] = offsets.out;
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (targets[step] >= 0) {
      swigluoai_vector<kBackward, T, kSize>(pairs[step], incoming[step], alpha, limit,
                                            out + targets[step]);
    }
  }

  if constexpr (kLayout == Layout::kFlat) {
    const int64_t tail = problem.columns % kSize;
    if (blockIdx.x == 0 && threadIdx.x < tail) {
      const int64_t pair = problem.columns - tail + threadIdx.x;
      Vec<T, 1> gradient = {};
      if constexpr (kBackward) {
        gradient.data[0] = grad_out[pair];
      }
      swigluoai_vector<kBackward, T, 1>(Vec<T, 2>{input[2 * pair], input[2 * pair + 1]}, gradient,
                                        alpha, limit, out + (kBackward ? 2 * pair : pair));
    }
  }
}

}  // namespace graft_kernels::activation

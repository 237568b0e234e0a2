// Gradients of the activations on CUDA. Device code on raw pointers; no Torch. Elements are counted
// row by row in vectors; every thread takes kBackwardUnroll vectors, a block apart from each other,
// and loads all before it computes.
#pragma once

#include "kernels/activation/activation_kernel.cuh"

namespace graft_kernels::activation {

// Up to three inputs a vector: two vectors keep 96 bytes in flight per thread.
inline constexpr int kBackwardUnroll = 2;

struct ValueAndSlope {
  float value;
  float slope;
};

// exp, the logistic function and tanh: exact to the last bits for float32, with one instruction
// each for what is rounded to 16 bits.
template <typename T>
__device__ __forceinline__ float exponential(float x) {
  return sizeof(T) == 4 ? expf(x) : __expf(x);
}
template <typename T>
__device__ __forceinline__ float logistic(float x) {
  // __fdividef gives zero beyond 2^126, where the quotient would be a denormal.
  return sizeof(T) == 4 ? 1.0F / (1.0F + expf(-x)) : __fdividef(1.0F, 1.0F + __expf(-x));
}
template <typename T>
__device__ __forceinline__ float hyperbolic_tangent(float x) {
  return sizeof(T) == 4 ? tanhf(x) : tanh_one_path(x);
}

// The function and its derivative; T is the dtype that results are rounded to.
template <Function kFunction, typename T>
__device__ __forceinline__ ValueAndSlope evaluate(float x) {
  if constexpr (kFunction == Function::kSilu) {
    const float share = logistic<T>(x);
    return {x * share, share * (1.0F + x * (1.0F - share))};
  } else if constexpr (kFunction == Function::kGeluQuick) {
    const float share = logistic<T>(x * kQuickScale);
    return {x * share, share * (1.0F + x * kQuickScale * (1.0F - share))};
  } else if constexpr (kFunction == Function::kGelu) {
    const float below = 0.5F * (1.0F + erff(x * kSqrtHalf));
    const float density = kInverseSqrtTwoPi * exponential<T>(-0.5F * x * x);
    return {x * below, below + x * density};
  } else {
    constexpr float kRoot = kFunction == Function::kGeluFast ? kFastScale : kSqrtTwoOverPi;
    const float square = x * x;
    const float angle = hyperbolic_tangent<T>(kRoot * x * (1.0F + kCubic * square));
    const float inner_slope = kRoot * (1.0F + 3.0F * kCubic * square);
    return {0.5F * x * (1.0F + angle),
            0.5F * (1.0F + angle) + 0.5F * x * (1.0F - angle * angle) * inner_slope};
  }
}

// Element offsets of one vector in the five tensors.
struct BackwardOffsets {
  int64_t grad_out, gate, up, grad_gate, grad_up;
};

template <Layout kLayout, int kSize>
__device__ __forceinline__ BackwardOffsets offsets_of(const BackwardProblem& problem, int64_t index,
                                                      unsigned per_row) {
  if constexpr (kLayout == Layout::kFlat) {
    const int64_t offset = index * kSize;
    return {offset, offset, offset, offset, offset};
  } else if constexpr (kLayout == Layout::kRows) {
    const unsigned row = static_cast<unsigned>(index) / per_row;
    const int64_t column =
        static_cast<int64_t>(static_cast<unsigned>(index) - row * per_row) * kSize;
    return {row * problem.grad_out_rows.stride[0] + column,
            row * problem.gate_rows.stride[0] + column, row * problem.up_rows.stride[0] + column,
            row * problem.grad_gate_rows.stride[0] + column,
            row * problem.grad_up_rows.stride[0] + column};
  } else {
    const int64_t row = index / problem.columns;
    const int64_t column = index - row * problem.columns;
    return {problem.grad_out_rows.offset(row) + column, problem.gate_rows.offset(row) + column,
            problem.up_rows.offset(row) + column, problem.grad_gate_rows.offset(row) + column,
            problem.grad_up_rows.offset(row) + column};
  }
}

template <Function kFunction, bool kGated, typename T, int kSize>
__device__ __forceinline__ void backward_vector(const Vec<T, kSize>& incoming,
                                                const Vec<T, kSize>& gate, const Vec<T, kSize>& up,
                                                T* grad_gate, T* grad_up) {
  Vec<T, kSize> of_gate;
  Vec<T, kSize> of_up;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float from_above = to_float(incoming.data[i]);
    const ValueAndSlope result = evaluate<kFunction, T>(to_float(gate.data[i]));
    if constexpr (kGated) {
      of_gate.data[i] = from_float<T>(from_above * to_float(up.data[i]) * result.slope);
      of_up.data[i] = from_float<T>(from_above * result.value);
    } else {
      of_gate.data[i] = from_float<T>(from_above * result.slope);
    }
  }
  store_vector(grad_gate, of_gate);
  if constexpr (kGated) {
    store_vector(grad_up, of_up);
  }
}

template <Function kFunction, bool kGated, typename T, Layout kLayout>
__global__ void __launch_bounds__(kThreads)
    activation_bwd_kernel(const __grid_constant__ BackwardProblem problem) {
  constexpr int kSize = kLayout == Layout::kAny ? 1 : kVectorSize<T>;
  constexpr int kSteps = kLayout == Layout::kAny ? 1 : kBackwardUnroll;
  const T* grad_out = static_cast<const T*>(problem.grad_out);
  const T* gate = static_cast<const T*>(problem.gate);
  const T* up = static_cast<const T*>(problem.up);
  T* grad_gate = static_cast<T*>(problem.grad_gate);
  T* grad_up = static_cast<T*>(problem.grad_up);
  const int64_t per_row = problem.columns / kSize;
  const int64_t total = per_row * problem.rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kSteps) + threadIdx.x;

  Vec<T, kSize> incoming[kSteps];
  Vec<T, kSize> gates[kSteps];
  Vec<T, kSize> ups[kSteps];
  BackwardOffsets offsets[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t index = first + step * kThreads;
    if (index < total) {
      offsets[step] = offsets_of<kLayout, kSize>(problem, index, static_cast<unsigned>(per_row));
      incoming[step] = load_streaming<T, kSize>(grad_out + offsets[step].grad_out);
      gates[step] = load_streaming<T, kSize>(gate + offsets[step].gate);
      if constexpr (kGated) {
        ups[step] = load_streaming<T, kSize>(up + offsets[step].up);
      }
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (first + step * kThreads < total) {
      backward_vector<kFunction, kGated>(incoming[step], gates[step], ups[step],
                                         grad_gate + offsets[step].grad_gate,
                                         grad_up + offsets[step].grad_up);
    }
  }

  if constexpr (kLayout == Layout::kFlat) {
    const int64_t tail = problem.columns % kSize;
    if (blockIdx.x == 0 && threadIdx.x < tail) {
      const int64_t column = problem.columns - tail + threadIdx.x;
      Vec<T, 1> factor = {};
      if constexpr (kGated) {
        factor.data[0] = up[column];
      }
      backward_vector<kFunction, kGated>(Vec<T, 1>{grad_out[column]}, Vec<T, 1>{gate[column]},
                                         factor, grad_gate + column, grad_up + column);
    }
  }
}

}  // namespace graft_kernels::activation

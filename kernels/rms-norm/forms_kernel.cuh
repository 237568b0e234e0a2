// Gated RMSNorm and LayerNorm on CUDA. Device code on raw pointers; no Torch.
//
// Some lanes of a warp, or a block, take a row. Rows of up to kKept vectors per thread are read once and kept in registers; with
// kKept = 0 rows have any length, layout and alignment, and are read once for each pass.
#pragma once

#include "kernels/common/overlap.cuh"
#include "kernels/rms-norm/forms.h"
#include "kernels/rms-norm/rms_norm_long_kernel.cuh"

namespace graft_kernels::rms_norm {

inline constexpr int kFormThreads = 512;

// The logistic function; what is rounded to 16 bits next needs no more than the short forms give.
template <typename X>
__device__ __forceinline__ float logistic(float x) {
  if constexpr (sizeof(X) == 4) {
    return 1.0F / (1.0F + expf(-x));
  } else {
    return __fdividef(1.0F, 1.0F + __expf(-x));
  }
}
template <typename X>
__device__ __forceinline__ float gate_value(GateFunction function, float gate) {
  const float share = logistic<X>(gate);
  return function == GateFunction::kSilu ? gate * share : share;
}
struct GateValue {
  float value, slope;
};
template <typename X>
__device__ __forceinline__ GateValue gate_with_slope(GateFunction function, float gate) {
  const float share = logistic<X>(gate), rest = 1.0F - share;
  return function == GateFunction::kSilu ? GateValue{gate * share, share * fmaf(gate, rest, 1.0F)}
                                         : GateValue{share, share * rest};
}

// A vector of the weight or the bias of a group's row; `absent` where there is none.
template <bool kAligned, typename X, int kSize>
__device__ __forceinline__ Vec<float, kSize> load_factor(const FormProblem& problem,
                                                         const void* from, float absent,
                                                         int64_t group, int64_t column) {
  Vec<float, kSize> factor;
  if (from == nullptr) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      factor.data[i] = absent;
    }
  } else if (problem.weight_dtype == Dtype::kFloat32) {
    factor = load_any<kAligned, kSize>(static_cast<const float*>(from) + group * problem.columns,
                                       column, problem.columns);
  } else {
    const auto stored = load_any<kAligned, kSize>(
        static_cast<const X*>(from) + group * problem.columns, column, problem.columns);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      factor.data[i] = to_float(stored.data[i]);
    }
  }
  return factor;
}
template <bool kAligned, typename X, int kSize>
__device__ __forceinline__ Vec<float, kSize> load_weight(const FormProblem& problem, int64_t group,
                                                         int64_t column) {
  auto weight = load_factor<kAligned, X, kSize>(problem, problem.weight, 1.0F, group, column);
  if (problem.variant == Variant::kZeroCentered) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      weight.data[i] += 1.0F;
    }
  }
  return weight;
}

// What a thread holds of a vector: what is normalized, and the gate that comes after.
template <Form kForm, typename X, int kSize>
struct FormVector {
  static constexpr bool kGateLater = kForm == Form::kNormThenGate;
  Vec<std::conditional_t<kForm == Form::kGateThenNorm, float, X>, kSize> value;
  Vec<X, kGateLater ? kSize : 1> gate;
};

// The rows that a thread works on at a time.
template <Form kForm, typename X>
struct FormRow {
  const X* x;
  const X* gate;

  __device__ FormRow(const FormProblem& problem, int64_t row)
      : x(static_cast<const X*>(problem.x) + offset_of(problem.x_rows, row)),
        gate(kForm == Form::kLayer
                 ? nullptr
                 : static_cast<const X*>(problem.gate) + offset_of(problem.gate_rows, row)) {}

  template <bool kAligned, int kSize>
  __device__ __forceinline__ FormVector<kForm, X, kSize> load(const FormProblem& problem,
                                                              int64_t column) const {
    FormVector<kForm, X, kSize> vector;
    const auto raw = load_any<kAligned, kSize>(x, column, problem.columns);
    if constexpr (kForm == Form::kGateThenNorm) {
      const auto gates = load_any<kAligned, kSize>(gate, column, problem.columns);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        vector.value.data[i] =
            to_float(raw.data[i]) * gate_value<X>(problem.function, to_float(gates.data[i]));
      }
    } else {
      vector.value = raw;
    }
    if constexpr (kForm == Form::kNormThenGate) {
      vector.gate = load_any<kAligned, kSize>(gate, column, problem.columns);
    }
    return vector;
  }
};

// The threads of a row, and their sums. Fewer than a warp's share one with other rows, so that all rows of a warp
// have to take part in a sum.
struct Team {
  int threads;  // a power of two up to a warp, or the block
  int lane;     // in the row
  float*
      shared;  // [2][3][kWarp]: calls in turn use different halves, so that one barrier a call is enough
  int turn = 0;

  __device__ Team(int threads_of_row, float* shared_sums)
      : threads(threads_of_row),
        lane(static_cast<int>(threadIdx.x) % threads_of_row),
        shared(shared_sums) {}

  template <int kCount>
  __device__ __forceinline__ void sum(float (&values)[kCount]) {
    for (int distance = min(threads, kWarp) / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] += __shfl_xor_sync(0xffffffffU, values[i], distance);
      }
    }
    if (threads <= kWarp) {
      return;
    }
    turn ^= 1;
    float* own = shared + turn * 3 * kWarp;
    const int num_warps = threads / kWarp, warp = lane / kWarp;
    if (lane % kWarp == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        own[i * kWarp + warp] = values[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = lane % kWarp < num_warps ? own[i * kWarp + lane % kWarp] : 0.0F;
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] += __shfl_xor_sync(0xffffffffU, values[i], distance);
      }
    }
  }
};
inline constexpr int kTeamSums = 2 * 3 * kWarp;

// Calls body(slot, column) for the vectors of a thread: all unrolled where they are kept.
template <int kKept, int kSize, typename Body>
__device__ __forceinline__ void for_vectors(const Team& team, int64_t columns, const Body& body) {
  if constexpr (kKept > 0) {
#pragma unroll
    for (int slot = 0; slot < kKept; ++slot) {
      const int column = (team.lane + slot * team.threads) * kSize;
      if (column < columns) {
        body(slot, static_cast<int64_t>(column));
      }
    }
  } else {
    for (int64_t column = int64_t{team.lane} * kSize; column < columns;
         column += int64_t{team.threads} * kSize) {
      body(0, column);
    }
  }
}

// Sum of (element - mean)^2 of a vector, or of the elements; beyond the row there is nothing to add.
template <bool kAligned, typename T, int kSize>
__device__ __forceinline__ float centered_squares(const Vec<T, kSize>& vector, float mean,
                                                  int64_t column, int64_t columns) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float element = to_float(vector.data[i]) - mean;
    if (kAligned || column + i < columns) {
      squares = fmaf(element, element, squares);
    }
  }
  return squares;
}
template <typename T, int kSize>
__device__ __forceinline__ float elements_of(const Vec<T, kSize>& vector) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    sum += to_float(vector.data[i]);
  }
  return sum;
}

template <Form kForm, typename X, int kSize>
__device__ __forceinline__ Vec<X, kSize> form_result(const FormProblem& problem,
                                                     const FormVector<kForm, X, kSize>& vector,
                                                     const Vec<float, kSize>& weight,
                                                     const Vec<float, kSize>& bias, float mean,
                                                     float inverse) {
  const bool rounds = problem.variant == Variant::kCastBeforeWeight;
  const bool rounds_product = rounds && problem.weight_dtype == problem.x_dtype;
  Vec<X, kSize> result;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float element = to_float(vector.value.data[i]);
    if constexpr (kForm == Form::kLayer) {
      result.data[i] =
          from_float<X>(fmaf((element - mean) * inverse, weight.data[i], bias.data[i]));
    } else {
      const float norm = __fmul_rn(element, inverse);
      float value = __fmul_rn(weight.data[i], rounds ? round_to<X>(norm) : norm);
      if constexpr (kForm == Form::kNormThenGate) {
        value = __fmul_rn(rounds_product ? round_to<X>(value) : value,
                          gate_value<X>(problem.function, to_float(vector.gate.data[i])));
      }
      result.data[i] = from_float<X>(value);
    }
  }
  return result;
}

// threads_of_row is a power of two up to a warp, or blockDim.x.
template <Form kForm, typename X, int kKept, bool kAligned>
__global__ void __launch_bounds__(kFormThreads)
    form_fwd_kernel(const __grid_constant__ FormProblem problem, int threads_of_row) {
  constexpr int kSize = kVectorSize<X>;
  __shared__ float shared_sums[kTeamSums];
  let_next_start();
  wait_for_previous();
  Team team(threads_of_row, shared_sums);
  const int rows_of_block = static_cast<int>(blockDim.x) / threads_of_row;
  for (int64_t first = int64_t{blockIdx.x} * rows_of_block; first < problem.rows;
       first += int64_t{gridDim.x} * rows_of_block) {
    const int64_t row = first + threadIdx.x / threads_of_row;
    const int64_t columns = row < problem.rows ? problem.columns : 0;  // none beyond the last row
    const FormRow<kForm, X> source(problem, row);
    FormVector<kForm, X, kSize> kept[kKept > 0 ? kKept : 1] = {};
    // With nothing kept a vector is read anew for each pass.
    const auto vector_at = [&](int slot, int64_t column) {
      if constexpr (kKept == 0) {
        return source.template load<kAligned, kSize>(problem, column);
      } else {
        return kept[slot];
      }
    };
    if constexpr (kKept > 0) {
      for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
        kept[slot] = source.template load<kAligned, kSize>(problem, column);
      });
    }
    const float width = static_cast<float>(problem.columns);
    float mean = 0;
    if constexpr (kForm == Form::kLayer) {
      float sum[1] = {};
      for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
        sum[0] += elements_of(vector_at(slot, column).value);
      });
      team.sum(sum);
      mean = sum[0] / width;
    }
    float squares[1] = {};
    for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
      squares[0] +=
          centered_squares<kAligned>(vector_at(slot, column).value, mean, column, columns);
    });
    team.sum(squares);
    const float inverse = rsqrtf(squares[0] / width + problem.eps);
    const int64_t group = problem.groups == 1 ? 0 : row % problem.groups;
    X* out = static_cast<X*>(problem.out) + offset_of(problem.out_rows, row);
    for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
      const auto weight = load_weight<kAligned, X, kSize>(problem, group, column);
      Vec<float, kSize> bias = {};
      if constexpr (kForm == Form::kLayer) {
        bias = load_factor<kAligned, X, kSize>(problem, problem.bias, 0.0F, 0, column);
      }
      store_any<kAligned>(out, column, columns,
                          form_result<kForm, X, kSize>(problem, vector_at(slot, column), weight,
                                                       bias, mean, inverse));
    });
  }
}

}  // namespace graft_kernels::rms_norm

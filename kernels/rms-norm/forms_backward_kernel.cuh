// The backward of the gated RMSNorm and of LayerNorm on CUDA. Device code on raw pointers; no Torch.
//
// A block takes rows of one group in turn and keeps its share of the gradients of weight and bias to itself until
// the end, so that no two blocks ever add to one number: the result has one order.
#pragma once

#include "kernels/rms-norm/forms_kernel.cuh"

namespace graft_kernels::rms_norm {

template <Form kForm, typename X, int kSize>
struct FormBackwardVector {
  Vec<X, kSize> x;
  Vec<X, kSize> grad_out;
  Vec<X, is_gated(kForm) ? kSize : 1> gate;
};

template <Form kForm, typename X>
struct FormBackwardRow {
  FormRow<kForm, X> source;
  const X* grad_out;
  X* grad_x;
  X* grad_gate;

  __device__ FormBackwardRow(const FormBackwardProblem& problem, int64_t row)
      : source(problem.call, row),
        grad_out(static_cast<const X*>(problem.grad_out) + offset_of(problem.grad_out_rows, row)),
        grad_x(static_cast<X*>(problem.grad_x) + offset_of(problem.grad_x_rows, row)),
        grad_gate(kForm == Form::kLayer ? nullptr
                                        : static_cast<X*>(problem.grad_gate) +
                                              offset_of(problem.grad_gate_rows, row)) {}

  template <bool kAligned, int kSize>
  __device__ __forceinline__ FormBackwardVector<kForm, X, kSize> load(int64_t column,
                                                                      int64_t columns) const {
    FormBackwardVector<kForm, X, kSize> vector;
    vector.x = load_any<kAligned, kSize>(source.x, column, columns);
    vector.grad_out = load_any<kAligned, kSize>(grad_out, column, columns);
    if constexpr (kForm != Form::kLayer) {
      vector.gate = load_any<kAligned, kSize>(source.gate, column, columns);
    }
    return vector;
  }
};

// An element as the passes need it.
struct FormElement {
  float value;     // what is normalized
  float incoming;  // the gradient of the scaled norm: past the gate where that comes after
  GateValue gate;
};
template <Form kForm, typename X, int kSize>
__device__ __forceinline__ FormElement element_of(const FormBackwardVector<kForm, X, kSize>& vector,
                                                  int i, GateFunction function) {
  FormElement element = {to_float(vector.x.data[i]), to_float(vector.grad_out.data[i]), {}};
  if constexpr (is_gated(kForm)) {
    element.gate = gate_with_slope<X>(function, to_float(vector.gate.data[i]));
    if constexpr (kForm == Form::kNormThenGate) {
      element.incoming *= element.gate.value;
    } else {
      element.value *= element.gate.value;
    }
  }
  return element;
}

// What the elements of a row share in the second half of the work.
struct FormFactors {
  float mean, inverse;
  float pull;   // inverse^2 * mean(gradient * value)
  float shift;  // mean(gradient), LayerNorm's
};

// The gradients of a vector, with the one of the sum where there is one; adds its shares of the weight's and the
// bias's.
template <Form kForm, typename X, int kSize>
__device__ __forceinline__ void form_gradients(const FormBackwardVector<kForm, X, kSize>& vector,
                                               const Vec<float, kSize>& weight,
                                               const FormFactors& factors, GateFunction function,
                                               Vec<X, kSize>& grad_x, Vec<X, kSize>& grad_gate,
                                               float* weight_shares, float* bias_shares,
                                               const Vec<X, kSize>* grad_sum = nullptr) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const FormElement element = element_of<kForm, X, kSize>(vector, i, function);
    const float value = element.value - factors.mean, norm = value * factors.inverse;
    const float gradient =
        factors.inverse *
        (fmaf(element.incoming, weight.data[i], -factors.shift) - value * factors.pull);
    weight_shares[i] = fmaf(element.incoming, norm, weight_shares[i]);
    if constexpr (kForm == Form::kPlain) {
      const float addend = grad_sum == nullptr ? 0.0F : to_float(grad_sum->data[i]);
      grad_x.data[i] = from_float<X>(gradient + addend);
    } else if constexpr (kForm == Form::kLayer) {
      bias_shares[i] += element.incoming;
      grad_x.data[i] = from_float<X>(gradient);
    } else if constexpr (kForm == Form::kNormThenGate) {
      grad_x.data[i] = from_float<X>(gradient);
      grad_gate.data[i] = from_float<X>(to_float(vector.grad_out.data[i]) *
                                        (norm * weight.data[i]) * element.gate.slope);
    } else {
      grad_x.data[i] = from_float<X>(gradient * element.gate.value);
      grad_gate.data[i] = from_float<X>(gradient * to_float(vector.x.data[i]) * element.gate.slope);
    }
  }
}

// Writes what the rows of a block have in their registers into its row of the partial sums. `combined` holds
// rows_of_block * columns floats where several warps have rows of their own.
template <int kKept, int kSize>
__device__ __forceinline__ void store_form_shares(const Team& team, int64_t columns,
                                                  const float (&shares)[kKept][kSize],
                                                  float* combined, float* partial) {
  const int rows_of_block = static_cast<int>(blockDim.x) / team.threads;
  float* own = rows_of_block == 1
                   ? partial
                   : combined + static_cast<int>(threadIdx.x) / team.threads * columns;
  for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      own[column + i] = shares[slot][i];
    }
  });
  if (rows_of_block == 1) {
    return;
  }
  __syncthreads();
  for (int64_t column = threadIdx.x; column < columns; column += blockDim.x) {
    float total = 0;
    for (int row = 0; row < rows_of_block; ++row) {
      total += combined[row * columns + column];
    }
    partial[column] = total;
  }
  __syncthreads();
}

// gridDim.x = parts * groups. threads_of_row is a power of two up to a warp, or blockDim.x; without kept vectors it is
// blockDim.x.
template <Form kForm, typename X, int kKept, bool kAligned>
__global__ void __launch_bounds__(kFormThreads)
    form_bwd_kernel(const __grid_constant__ FormBackwardProblem problem, int threads_of_row) {
  constexpr int kSize = kVectorSize<X>;
  constexpr bool kIsLayer = kForm == Form::kLayer;
  using Vector = FormBackwardVector<kForm, X, kSize>;
  __shared__ float shared_sums[kTeamSums];
  extern __shared__ float combined[];
  const FormProblem& call = problem.call;
  Team team(threads_of_row, shared_sums);
  const int64_t group = blockIdx.x % call.groups, part = blockIdx.x / call.groups;
  const int rows_of_block = static_cast<int>(blockDim.x) / threads_of_row;
  const int64_t rows_of_group = call.rows / call.groups;
  float* partial = problem.partial + int64_t{blockIdx.x} * call.columns;
  float* partial_bias =
      kIsLayer ? problem.partial_bias + int64_t{blockIdx.x} * call.columns : nullptr;
  float weight_shares[kKept > 0 ? kKept : 1][kSize] = {};
  float bias_shares[kIsLayer && kKept > 0 ? kKept : 1][kSize] = {};
  const int64_t start = part * rows_of_block;
  for (int64_t first = start; first < rows_of_group; first += problem.parts * rows_of_block) {
    const int64_t index = first + threadIdx.x / threads_of_row;
    const int64_t columns = index < rows_of_group ? call.columns : 0;  // none beyond the last row
    const FormBackwardRow<kForm, X> row(problem, index * call.groups + group);
    Vector kept[kKept > 0 ? kKept : 1] = {};
    const auto vector_at = [&](int slot, int64_t column) {
      if constexpr (kKept == 0) {
        return row.template load<kAligned, kSize>(column, columns);
      } else {
        return kept[slot];
      }
    };
    if constexpr (kKept > 0) {
      for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
        kept[slot] = row.template load<kAligned, kSize>(column, columns);
      });
    }
    const float width = static_cast<float>(call.columns);
    FormFactors factors = {};
    if constexpr (kIsLayer) {
      float sum[1] = {};
      for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
        sum[0] += elements_of(vector_at(slot, column).x);
      });
      team.sum(sum);
      factors.mean = sum[0] / width;
    }
    float sums[kIsLayer ? 3 : 2] = {};  // of squares, of gradient * value, of gradients
    for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
      const Vector vector = vector_at(slot, column);
      const auto weight = load_weight<kAligned, X, kSize>(call, group, column);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const FormElement element = element_of<kForm, X, kSize>(vector, i, call.function);
        const float gradient = element.incoming * weight.data[i];
        const float value = kAligned || column + i < columns ? element.value - factors.mean : 0.0F;
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(gradient, value, sums[1]);
        if constexpr (kIsLayer) {
          sums[2] += gradient;
        }
      }
    });
    team.sum(sums);
    factors.inverse = rsqrtf(sums[0] / width + call.eps);
    factors.pull = factors.inverse * factors.inverse * (sums[1] / width);
    if constexpr (kIsLayer) {
      factors.shift = sums[2] / width;
    }
    for_vectors<kKept, kSize>(team, columns, [&](int slot, int64_t column) {
      const auto weight = load_weight<kAligned, X, kSize>(call, group, column);
      Vec<X, kSize> grad_x = {}, grad_gate = {};
      if constexpr (kKept > 0) {
        form_gradients<kForm, X, kSize>(kept[slot], weight, factors, call.function, grad_x,
                                        grad_gate, weight_shares[slot],
                                        bias_shares[kIsLayer ? slot : 0]);
      } else {
        // The shares lie in the block's own row of the partial sums.
        Vec<float, kSize> of_weight = {}, of_bias = {};
        if (first != start) {
          of_weight = load_any<kAligned, kSize>(partial, column, columns);
          if constexpr (kIsLayer) {
            of_bias = load_any<kAligned, kSize>(partial_bias, column, columns);
          }
        }
        form_gradients<kForm, X, kSize>(vector_at(slot, column), weight, factors, call.function,
                                        grad_x, grad_gate, of_weight.data, of_bias.data);
        store_any<kAligned>(partial, column, columns, of_weight);
        if constexpr (kIsLayer) {
          store_any<kAligned>(partial_bias, column, columns, of_bias);
        }
      }
      store_any<kAligned>(row.grad_x, column, columns, grad_x);
      if constexpr (!kIsLayer) {
        store_any<kAligned>(row.grad_gate, column, columns, grad_gate);
      }
    });
  }
  if constexpr (kKept > 0) {
    store_form_shares<kKept, kSize>(team, call.columns, weight_shares, combined, partial);
    if constexpr (kIsLayer) {
      store_form_shares<kKept, kSize>(team, call.columns, bias_shares, combined, partial_bias);
    }
  }
}

}  // namespace graft_kernels::rms_norm

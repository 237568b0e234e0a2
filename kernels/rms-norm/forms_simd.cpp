// Rows of the gated RMSNorm and of LayerNorm, forward and backward, with the vectors of one instruction set.
// Compiled once per set: see common/simd.h.

#include <math.h>

#include "kernels/common/simd_math.h"
#include "kernels/rms-norm/forms.h"
#include "kernels/rms-norm/rows_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using rms_norm::Form;
using rms_norm::FormBackwardProblem;
using rms_norm::FormProblem;
using rms_norm::GateFunction;
using rms_norm::Variant;

Float gate_value(GateFunction function, Float gate) {
  return function == GateFunction::kSilu ? silu(gate) : logistic(gate);
}
Float gate_slope(GateFunction function, Float gate) {
  const Float share = logistic(gate), rest = splat(1.0F) - share;
  return function == GateFunction::kSilu ? share * (splat(1.0F) + gate * rest) : share * rest;
}

// What scales one row; the weight or the bias of `from` where there is one, else `absent`.
template <typename X>
struct RowFactors {
  const FormProblem& problem;
  int64_t first;  // of the row's group

  Float read(const void* from, float absent, int64_t column, int64_t count) const {
    if (from == nullptr) {
      return splat(absent);
    }
    return problem.weight_dtype == Dtype::kFloat32
               ? load_some<float>(static_cast<const float*>(from) + first + column, count)
               : load_some<X>(static_cast<const X*>(from) + first + column, count);
  }
  Float weight(int64_t column, int64_t count) const {
    const Float stored = read(problem.weight, 1.0F, column, count);
    return problem.variant == Variant::kZeroCentered ? splat(1.0F) + stored : stored;
  }
  Float bias(int64_t column, int64_t count) const {
    return read(problem.bias, 0.0F, column, count);
  }
};

// What is normalized: x, or its product with the gate.
template <Form kForm, typename X>
struct RowInput {
  const X* x;
  const X* gate;
  GateFunction function;

  Float operator()(int64_t column, int64_t count) const {
    const Float value = load_some<X>(x + column, count);
    if constexpr (kForm == Form::kGateThenNorm) {
      return value * gate_value(function, load_some<X>(gate + column, count));
    }
    return value;
  }
};

template <Form kForm, typename X>
RowInput<kForm, X> input_of(const FormProblem& problem, int64_t row) {
  const X* gate = kForm == Form::kLayer
                      ? nullptr
                      : static_cast<const X*>(problem.gate) + problem.gate_rows.offset(row);
  return {static_cast<const X*>(problem.x) + problem.x_rows.offset(row), gate, problem.function};
}

template <Form kForm, typename X>
Float mean_of(const RowInput<kForm, X>& input, int64_t columns) {
  if constexpr (kForm == Form::kLayer) {
    return splat(sum_over_row(columns, input) / static_cast<float>(columns));
  }
  return Float{};
}

template <Form kForm, typename X>
void form_row(const FormProblem& problem, int64_t row) {
  const RowInput<kForm, X> input = input_of<kForm, X>(problem, row);
  const RowFactors<X> factors{problem, row % problem.groups * problem.columns};
  const Float mean = mean_of(input, problem.columns);
  const float squares = sum_over_row(problem.columns, [&](int64_t column, int64_t count) {
    const Float element = keep_first(input(column, count) - mean, count);
    return element * element;
  });
  const Float inverse =
      splat(1.0F / sqrtf(squares / static_cast<float>(problem.columns) + problem.eps));
  const bool rounds = problem.variant == Variant::kCastBeforeWeight;
  const bool rounds_product = rounds && problem.weight_dtype == problem.x_dtype;
  X* out = static_cast<X*>(problem.out) + problem.out_rows.offset(row);
  for_each_vector(problem.columns, [&](int64_t column, int64_t count) {
    const Float norm = (input(column, count) - mean) * inverse,
                weight = factors.weight(column, count);
    if constexpr (kForm == Form::kLayer) {
      store_some(out + column, norm * weight + factors.bias(column, count), count);
    } else {
      Float value = weight * (rounds ? round_to<X>(norm) : norm);
      if constexpr (kForm == Form::kNormThenGate) {
        value = (rounds_product ? round_to<X>(value) : value) *
                gate_value(problem.function, load_some<X>(input.gate + column, count));
      }
      store_some(out + column, value, count);
    }
  });
}

template <typename X>
void rows_of(const FormProblem& problem, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    switch (problem.form) {
      case Form::kNormThenGate:
        form_row<Form::kNormThenGate, X>(problem, row);
        break;
      case Form::kGateThenNorm:
        form_row<Form::kGateThenNorm, X>(problem, row);
        break;
      case Form::kLayer:
        form_row<Form::kLayer, X>(problem, row);
        break;
      case Form::kPlain:  // rms_norm_simd.cpp
        break;
    }
  }
}

// Adds the row's shares to those of the weight and of the bias.
template <Form kForm, typename X>
void backward_row(const FormBackwardProblem& backward, int64_t row, float* grad_weight,
                  float* grad_bias) {
  const FormProblem& problem = backward.call;
  const RowInput<kForm, X> input = input_of<kForm, X>(problem, row);
  const RowFactors<X> factors{problem, row % problem.groups * problem.columns};
  const X* grad_out = static_cast<const X*>(backward.grad_out) + backward.grad_out_rows.offset(row);
  X* grad_x = static_cast<X*>(backward.grad_x) + backward.grad_x_rows.offset(row);
  X* grad_gate = kForm == Form::kLayer
                     ? nullptr
                     : static_cast<X*>(backward.grad_gate) + backward.grad_gate_rows.offset(row);
  // The gradient of the scaled norm: past the gate where that comes after.
  const auto incoming = [&](int64_t column, int64_t count) {
    const Float value = load_some<X>(grad_out + column, count);
    if constexpr (kForm == Form::kNormThenGate) {
      return value * gate_value(problem.function, load_some<X>(input.gate + column, count));
    }
    return value;
  };
  const Float mean = mean_of(input, problem.columns);
  float sums[3];  // of squares, of gradients, of gradient * value
  sums_over_row(problem.columns, sums, [&](int64_t column, int64_t count, Float(&addends)[3]) {
    const Float value = keep_first(input(column, count) - mean, count);
    const Float gradient = incoming(column, count) * factors.weight(column, count);
    addends[0] = value * value;
    addends[1] = gradient;
    addends[2] = gradient * value;
  });
  const float width = static_cast<float>(problem.columns);
  const float inverse = 1.0F / sqrtf(sums[0] / width + problem.eps);
  const Float scale = splat(inverse), pull = splat(inverse * inverse * (sums[2] / width)),
              shift = splat(kForm == Form::kLayer ? sums[1] / width : 0.0F);
  for_each_vector(problem.columns, [&](int64_t column, int64_t count) {
    const Float value = input(column, count) - mean, norm = value * scale;
    const Float from_above = incoming(column, count), weight = factors.weight(column, count);
    const Float gradient = scale * (from_above * weight - shift - value * pull);
    store_some(grad_weight + column,
               load_some<float>(grad_weight + column, count) + from_above * norm, count);
    if constexpr (kForm == Form::kLayer) {
      store_some(grad_bias + column, load_some<float>(grad_bias + column, count) + from_above,
                 count);
      store_some(grad_x + column, gradient, count);
    } else {
      const Float gate = load_some<X>(input.gate + column, count);
      const Float slope = gate_slope(problem.function, gate);
      const Float x = load_some<X>(input.x + column, count);
      const Float raw = load_some<X>(grad_out + column, count);
      if constexpr (kForm == Form::kNormThenGate) {
        store_some(grad_x + column, gradient, count);
        store_some(grad_gate + column, raw * (norm * weight) * slope, count);
      } else {
        store_some(grad_x + column, gradient * gate_value(problem.function, gate), count);
        store_some(grad_gate + column, gradient * x * slope, count);
      }
    }
  });
}

// Rows of a group are added up in blocks of this many, and the blocks then: the error of many rows stays that of
// few.
constexpr int64_t kBlockRows = 32;

// total[i] += block[i], and block[i] = 0.
void flush_block(float* total, float* block, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    total[i] += block[i];
    block[i] = 0.0F;
  }
}

template <Form kForm, typename X>
void backward_part(const FormBackwardProblem& problem, int64_t part) {
  const FormProblem& call = problem.call;
  const int64_t begin = call.rows * part / problem.parts,
                end = call.rows * (part + 1) / problem.parts;
  const int64_t width = call.groups * call.columns, scratch = problem.parts * width;
  float* weight_shares = problem.partial + part * width;
  float* bias_shares = kForm == Form::kLayer ? problem.partial_bias + part * width : nullptr;
  for (int64_t i = 0; i < width; ++i) {
    weight_shares[i] = weight_shares[scratch + i] = 0.0F;
    if constexpr (kForm == Form::kLayer) {
      bias_shares[i] = bias_shares[scratch + i] = 0.0F;
    }
  }
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row % call.groups * call.columns;
    backward_row<kForm, X>(problem, row, weight_shares + scratch + first,
                           kForm == Form::kLayer ? bias_shares + scratch : nullptr);
    if ((row - begin) % (kBlockRows * call.groups) == kBlockRows * call.groups - 1 ||
        row + 1 == end) {
      flush_block(weight_shares, weight_shares + scratch, width);
      if constexpr (kForm == Form::kLayer) {
        flush_block(bias_shares, bias_shares + scratch, width);
      }
    }
  }
}

}  // namespace

void form_rows(const FormProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.x_dtype, [&]<typename T>(T*) { rows_of<T>(problem, begin, end); });
}

void form_backward_part(const FormBackwardProblem& problem, int64_t part) {
  with_type(problem.call.x_dtype, [&]<typename T>(T*) {
    switch (problem.call.form) {
      case Form::kNormThenGate:
        return backward_part<Form::kNormThenGate, T>(problem, part);
      case Form::kGateThenNorm:
        return backward_part<Form::kGateThenNorm, T>(problem, part);
      case Form::kLayer:
        return backward_part<Form::kLayer, T>(problem, part);
      case Form::kPlain:  // rms_norm_backward_simd.cpp
        return;
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA

// Gate and up in one pass with the activation applied as a range of columns is finished, then down.
// Compiled once per instruction set: see common/simd.h.

#include "kernels/common/dots_simd.h"
#include "kernels/common/simd_math.h"
#include "kernels/mlp/mlp.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using mlp::Function;
using mlp::Problem;

template <typename W>
float with_bias(float sum, const void* bias, int64_t column) {
  if (bias != nullptr) {
    sum += load_partial<W>(static_cast<const W*>(bias) + column, 1)[0];
  }
  return round_to<W>(splat(sum))[0];
}

template <Function kFunction>
Float apply(Float x) {
  if constexpr (kFunction == Function::kSilu) {
    return silu(x);
  } else if constexpr (kFunction == Function::kGelu) {
    return gelu(x);
  } else {
    return gelu_tanh(x);
  }
}

// Each step is rounded to W; S is what gate and up are kept in, W itself or float32. A store rounds to S.
template <Function kFunction, typename W, typename S>
void activate(S* gate, const S* up, int64_t count) {
  constexpr bool kRounds = sizeof(S) != sizeof(W);
  const auto result = [](Float x, Float factor) {
    const Float product = round_to<W>(apply<kFunction>(x)) * factor;
    return kRounds ? round_to<W>(product) : product;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(gate + i, result(load<S>(gate + i), load<S>(up + i)));
  }
  if (i < count) {
    const int64_t rest = count - i;
    store_partial(gate + i, result(load_partial<S>(gate + i, rest), load_partial<S>(up + i, rest)),
                  rest);
  }
}

template <typename W, typename S>
void activate_function(Function function, S* gate, const S* up, int64_t count) {
  switch (function) {
    case Function::kSilu:
      return activate<Function::kSilu, W>(gate, up, count);
    case Function::kGelu:
      return activate<Function::kGelu, W>(gate, up, count);
    case Function::kGeluTanh:
      return activate<Function::kGeluTanh, W>(gate, up, count);
  }
}

// The derivative of the function.
template <Function kFunction>
Float slope(Float x) {
  constexpr float kInverseSqrtTwoPi = 0.39894228040143267794F;
  const Float one = splat(1.0F), half = splat(0.5F);
  if constexpr (kFunction == Function::kSilu) {
    const Float share = logistic(x);
    return share * (one + x * (one - share));
  } else if constexpr (kFunction == Function::kGelu) {
    const Float density = splat(kInverseSqrtTwoPi) * exp(splat(-0.5F) * x * x);
    return half * (one + erf(x * splat(kSqrtHalf))) + x * density;
  } else {
    const Float square = x * x, root = splat(kSqrtTwoOverPi);
    const Float angle = tanh(root * x * (one + splat(kCubic) * square));
    const Float inner = root * (one + splat(3.0F * kCubic) * square);
    return half * (one + angle) + half * x * (one - angle * angle) * inner;
  }
}

template <Function kFunction, typename W>
void activate_backward(float* gate, float* up, float* grad, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = count - i < kLanes ? count - i : kLanes;
    const Float x = load_partial<float>(gate + i, rest), factor = load_partial<float>(up + i, rest);
    const Float incoming = load_partial<float>(grad + i, rest);
    const Float value = apply<kFunction>(x);
    store_partial(gate + i, incoming * factor * slope<kFunction>(x), rest);
    store_partial(up + i, incoming * value, rest);
    store_partial(grad + i, round_to<W>(round_to<W>(value) * factor), rest);
  }
}

template <typename W>
void activate_backward_function(Function function, float* gate, float* up, float* grad,
                                int64_t count) {
  switch (function) {
    case Function::kSilu:
      return activate_backward<Function::kSilu, W>(gate, up, grad, count);
    case Function::kGelu:
      return activate_backward<Function::kGelu, W>(gate, up, grad, count);
    case Function::kGeluTanh:
      return activate_backward<Function::kGeluTanh, W>(gate, up, grad, count);
  }
}

// kPairs rows of gate, `distance` apart, and the same of up.
template <int kPairs, typename W>
void gate_up_block(const Problem& problem, int64_t column, int64_t distance) {
  const W* streams[2 * kPairs];
  for (int j = 0; j < kPairs; ++j) {
    const int64_t offset = (column + j * distance) * problem.depth;
    streams[2 * j] = static_cast<const W*>(problem.weight) + offset;
    streams[2 * j + 1] = static_cast<const W*>(problem.up_weight) + offset;
  }
  const auto keep = [&](int64_t row, int stream, float sum) {
    const bool is_up = stream % 2 == 1;
    const int64_t at = column + stream / 2 * distance;
    (is_up ? problem.up : problem.gate)[row * problem.columns + at] =
        with_bias<W>(sum, is_up ? problem.up_bias : problem.bias, at);
  };
  dots_of_rows<2 * kPairs, W>(problem.x, problem.rows, problem.depth, streams, keep);
}

template <typename W>
void gate_up(const Problem& problem, int64_t begin, int64_t end) {
  constexpr int kPairs = kStreams / 2;
  const int64_t distance = (end - begin) / kPairs;
  for (int64_t column = begin; column < begin + distance; ++column) {
    gate_up_block<kPairs, W>(problem, column, distance);
  }
  for (int64_t column = begin + kPairs * distance; column < end; ++column) {
    gate_up_block<1, W>(problem, column, 1);
  }
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t at = row * problem.columns + begin;
    activate_function<W>(problem.function, problem.gate + at, problem.up + at, end - begin);
  }
}

template <typename W>
void down(const Problem& problem, int64_t begin, int64_t end) {
  dots_of_columns<W>(problem.x, problem.rows, problem.depth, static_cast<const W*>(problem.weight),
                     begin, end, [&](int64_t row, int64_t column, float sum) {
                       store_partial(static_cast<W*>(problem.out) + row * problem.columns + column,
                                     splat(with_bias<W>(sum, problem.bias, column)), 1);
                     });
}

}  // namespace

void mlp_gate_up(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename W>(W*) { gate_up<W>(problem, begin, end); });
}

void mlp_down(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename W>(W*) { down<W>(problem, begin, end); });
}

void mlp_activate(Dtype dtype, Function function, void* gate, const void* up, int64_t count) {
  with_type(dtype, [&]<typename W>(W*) {
    activate_function<W>(function, static_cast<W*>(gate), static_cast<const W*>(up), count);
  });
}

void mlp_activate_backward(Dtype dtype, Function function, float* gate, float* up, float* grad,
                           int64_t count) {
  with_type(dtype, [&]<typename W>(W*) {
    activate_backward_function<W>(function, gate, up, grad, count);
  });
}

void mlp_widen(Dtype dtype, const void* from, float* to, int64_t count) {
  with_type(dtype, [&]<typename X>(X*) { widen_span(static_cast<const X*>(from), to, count); });
}

}  // namespace graft_kernels::GRAFT_ISA

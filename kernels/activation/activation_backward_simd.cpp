// Gradients of the activations with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include "kernels/activation/activation.h"
#include "kernels/activation/activation_constants.h"
#include "kernels/common/simd_math.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using namespace activation;  // NOLINT(google-build-using-namespace): constants and the problem

struct ValueAndSlope {
  Float value;
  Float slope;
};

// The function and its derivative, in float32.
template <Function kFunction>
ValueAndSlope evaluate(Float x) {
  const Float one = splat(1.0F), half = splat(0.5F);
  if constexpr (kFunction == Function::kSilu) {
    const Float share = logistic(x);
    return {x * share, share * (one + x * (one - share))};
  } else if constexpr (kFunction == Function::kGeluQuick) {
    const Float scale = splat(kQuickScale), share = logistic(x * scale);
    return {x * share, share * (one + x * scale * (one - share))};
  } else if constexpr (kFunction == Function::kGelu) {
    const Float below = half * (one + erf(x * splat(kSqrtHalf)));
    const Float density = splat(kInverseSqrtTwoPi) * exp(splat(-0.5F) * x * x);
    return {x * below, below + x * density};
  } else {
    const Float root = splat(kFunction == Function::kGeluFast ? kFastScale : kSqrtTwoOverPi);
    const Float square = x * x;
    const Float angle = tanh(root * x * (one + splat(kCubic) * square));
    const Float inner_slope = root * (one + splat(3.0F * kCubic) * square);
    return {half * x * (one + angle),
            half * (one + angle) + half * x * (one - angle * angle) * inner_slope};
  }
}

// Pointers to consecutive elements.
template <typename T>
struct Segment {
  const T* grad_out;
  const T* gate;
  const T* up;
  T* grad_gate;
  T* grad_up;
};

template <Function kFunction, bool kGated, typename T, typename Load, typename Store>
void step(const Segment<T>& at, int64_t i, const Load& load_at, const Store& store_at) {
  const Float incoming = load_at(at.grad_out + i);
  const ValueAndSlope result = evaluate<kFunction>(load_at(at.gate + i));
  if constexpr (kGated) {
    const Float factor = load_at(at.up + i);
    store_at(at.grad_gate + i, incoming * factor * result.slope);
    store_at(at.grad_up + i, incoming * result.value);
  } else {
    store_at(at.grad_gate + i, incoming * result.slope);
  }
}

template <Function kFunction, bool kGated, typename T>
void segment(const Segment<T>& at, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    step<kFunction, kGated>(
        at, i, [](const T* from) { return load<T>(from); },
        [](T* to, Float value) { store(to, value); });
  }
  if (i < count) {
    step<kFunction, kGated>(
        at, i, [&](const T* from) { return load_partial<T>(from, count - i); },
        [&](T* to, Float value) { store_partial(to, value, count - i); });
  }
}

template <Function kFunction, bool kGated, typename T>
void span(const BackwardProblem& problem, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t row = begin / problem.columns;
    const int64_t column = begin - row * problem.columns;
    const int64_t in_row = problem.columns - column;
    const int64_t count = in_row < end - begin ? in_row : end - begin;
    const auto read = [&](const void* tensor, const RowLayout& rows) {
      return static_cast<const T*>(tensor) + rows.offset(row) + column;
    };
    const auto write = [&](void* tensor, const RowLayout& rows) {
      return static_cast<T*>(tensor) + rows.offset(row) + column;
    };
    segment<kFunction, kGated>(
        Segment<T>{read(problem.grad_out, problem.grad_out_rows),
                   read(problem.gate, problem.gate_rows),
                   kGated ? read(problem.up, problem.up_rows) : nullptr,
                   write(problem.grad_gate, problem.grad_gate_rows),
                   kGated ? write(problem.grad_up, problem.grad_up_rows) : nullptr},
        count);
    begin += count;
  }
}

template <Function kFunction, typename T>
void span_of_function(const BackwardProblem& problem, int64_t begin, int64_t end) {
  if constexpr (kHasProduct<kFunction>) {
    if (problem.up != nullptr) {
      return span<kFunction, true, T>(problem, begin, end);
    }
  }
  span<kFunction, false, T>(problem, begin, end);
}

template <typename T>
void span_of_dtype(const BackwardProblem& problem, int64_t begin, int64_t end) {
  switch (problem.function) {
    case Function::kSilu:
      return span_of_function<Function::kSilu, T>(problem, begin, end);
    case Function::kGelu:
      return span_of_function<Function::kGelu, T>(problem, begin, end);
    case Function::kGeluTanh:
    case Function::kGeluNew:  // rounds in other places, so its derivative is the same
      return span_of_function<Function::kGeluTanh, T>(problem, begin, end);
    case Function::kGeluFast:
      return span_of_function<Function::kGeluFast, T>(problem, begin, end);
    case Function::kGeluQuick:
      return span_of_function<Function::kGeluQuick, T>(problem, begin, end);
  }
}

}  // namespace

void activation_backward_span(const BackwardProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) { span_of_dtype<T>(problem, begin, end); });
}

}  // namespace graft_kernels::GRAFT_ISA

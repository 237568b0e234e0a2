// Activations with the vectors of one instruction set. Compiled once per set: see common/simd.h.

#include "kernels/activation/activation_constants.h"
#include "kernels/activation/fast_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using namespace activation;  // NOLINT(google-build-using-namespace): constants and the problem

// Function of x, before the last rounding to T. The last three are unfused in eager evaluation, so
// each of their steps rounds to T.
template <Function kFunction, typename T>
Float apply(Float x) {
  const Float one = splat(1.0F);
  if constexpr (kFunction == Function::kSilu) {
    return fast_silu(x);
  } else if constexpr (kFunction == Function::kGelu) {
    return fast_gelu(x);
  } else if constexpr (kFunction == Function::kGeluTanh) {
    return gelu_tanh(x);
  } else if constexpr (kFunction == Function::kGeluNew) {
    const Float cube = round_to<T>(round_to<T>(x * x) * x);
    const Float sum = round_to<T>(x + round_to<T>(cube * splat(kCubic)));
    const Float angle = round_to<T>(tanh(round_to<T>(sum * splat(kSqrtTwoOverPi))));
    return round_to<T>(x * splat(0.5F)) * round_to<T>(angle + one);
  } else if constexpr (kFunction == Function::kGeluFast) {
    const Float scaled = round_to<T>(x * splat(kFastScale));
    const Float cubic = round_to<T>(round_to<T>(x * splat(kCubic)) * x);
    const Float angle = round_to<T>(tanh(round_to<T>(scaled * round_to<T>(cubic + one))));
    return round_to<T>(x * splat(0.5F)) * round_to<T>(angle + one);
  } else {
    return x * round_to<T>(fast_logistic(round_to<T>(x * splat(kQuickScale))));
  }
}

template <Function kFunction, bool kGated, typename T>
Float result(Float gate, Float up) {
  const Float value = apply<kFunction, T>(gate);
  return kGated ? round_to<T>(value) * up : value;
}

template <Function kFunction, bool kGated, typename T>
void segment(T* out, const T* gate, const T* up, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(out + i,
          result<kFunction, kGated, T>(load<T>(gate + i), kGated ? load<T>(up + i) : Float{}));
  }
  if (i < count) {
    const int64_t rest = count - i;
    const Float factor = kGated ? load_partial<T>(up + i, rest) : Float{};
    store_partial(out + i, result<kFunction, kGated, T>(load_partial<T>(gate + i, rest), factor),
                  rest);
  }
}

template <Function kFunction, bool kGated, typename T>
void span(const Problem& problem, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t row = begin / problem.columns;
    const int64_t column = begin - row * problem.columns;
    const int64_t in_row = problem.columns - column;
    const int64_t count = in_row < end - begin ? in_row : end - begin;
    const T* gate = static_cast<const T*>(problem.gate) + problem.gate_rows.offset(row) + column;
    const T* up =
        kGated ? static_cast<const T*>(problem.up) + problem.up_rows.offset(row) + column : nullptr;
    T* out = static_cast<T*>(problem.out) + problem.out_rows.offset(row) + column;
    segment<kFunction, kGated, T>(out, gate, up, count);
    begin += count;
  }
}

template <Function kFunction, typename T>
void span_of_function(const Problem& problem, int64_t begin, int64_t end) {
  if constexpr (kHasProduct<kFunction>) {
    if (problem.up != nullptr) {
      return span<kFunction, true, T>(problem, begin, end);
    }
  }
  span<kFunction, false, T>(problem, begin, end);
}

template <typename T>
void span_of_dtype(const Problem& problem, int64_t begin, int64_t end) {
  switch (problem.function) {
    case Function::kSilu:
      return span_of_function<Function::kSilu, T>(problem, begin, end);
    case Function::kGelu:
      return span_of_function<Function::kGelu, T>(problem, begin, end);
    case Function::kGeluTanh:
      return span_of_function<Function::kGeluTanh, T>(problem, begin, end);
    case Function::kGeluNew:
      return span_of_function<Function::kGeluNew, T>(problem, begin, end);
    case Function::kGeluFast:
      return span_of_function<Function::kGeluFast, T>(problem, begin, end);
    case Function::kGeluQuick:
      return span_of_function<Function::kGeluQuick, T>(problem, begin, end);
  }
}

}  // namespace

void activation_span(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) { span_of_dtype<T>(problem, begin, end); });
}

}  // namespace graft_kernels::GRAFT_ISA

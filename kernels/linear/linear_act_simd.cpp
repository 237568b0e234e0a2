// Activation and residual of finished products. Compiled once per instruction set: see common/simd.h.

#include "kernels/common/simd_math.h"
#include "kernels/linear/linear_act.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using linear::Activation;
using linear::FinishProblem;

template <Activation kActivation>
Float apply(Float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return silu(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return gelu(x);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return gelu_tanh(x);
  } else if constexpr (kActivation == Activation::kGeluQuick) {
    return x / (splat(1.0F) + exp(x * splat(-kQuickScale)));
  } else if constexpr (kActivation == Activation::kRelu) {
    return select(x < Float{}, Float{}, x);
  } else {
    return x;
  }
}

template <Activation kActivation, typename T>
void finish(T* values, const T* residual, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Float value = apply<kActivation>(load<T>(values + i));
    store(values + i, residual == nullptr ? value : value + load<T>(residual + i));
  }
  if (i < count) {
    const int64_t rest = count - i;
    const Float value = apply<kActivation>(load_partial<T>(values + i, rest));
    store_partial(values + i,
                  residual == nullptr ? value : value + load_partial<T>(residual + i, rest), rest);
  }
}

template <typename T>
void finish_function(Activation activation, T* values, const T* residual, int64_t count) {
  switch (activation) {
    case Activation::kNone:
      return finish<Activation::kNone>(values, residual, count);
    case Activation::kSilu:
      return finish<Activation::kSilu>(values, residual, count);
    case Activation::kGelu:
      return finish<Activation::kGelu>(values, residual, count);
    case Activation::kGeluTanh:
      return finish<Activation::kGeluTanh>(values, residual, count);
    case Activation::kGeluQuick:
      return finish<Activation::kGeluQuick>(values, residual, count);
    case Activation::kRelu:
      return finish<Activation::kRelu>(values, residual, count);
  }
}

}  // namespace

void linear_finish(const FinishProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) {
    const T* residual = static_cast<const T*>(problem.residual);
    finish_function(problem.activation, static_cast<T*>(problem.values) + begin,
                    residual == nullptr ? residual : residual + begin, end - begin);
  });
}

}  // namespace graft_kernels::GRAFT_ISA

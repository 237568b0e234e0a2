// What the launchers of the gated RMSNorm and of LayerNorm share: how many threads take a row, and the choice of
// the kernel's template arguments.
#pragma once

#include <type_traits>

#include "kernels/common/cuda_launch.h"
#include "kernels/rms-norm/forms.h"
#include "kernels/rms-norm/rms_norm_layout.h"

namespace graft_kernels::rms_norm {

struct FormShape {
  int threads_of_row;
  int threads;  // of a block
  int kept;     // vectors in a thread's registers; 0: rows are read for every pass
};

// `whole`: every row is made of aligned vectors.
inline FormShape form_shape(int64_t vectors, bool whole) {
  constexpr int kBlock = 128;
  const int kept = whole ? 4 : 0;
  if (vectors <= 32) {
    return {vectors <= 8 ? 8 : vectors <= 16 ? 16 : 32, kBlock, whole ? 1 : 0};
  }
  if (vectors <= 128) {
    return {32, kBlock, kept};
  }
  if (vectors <= 512) {
    return {128, 128, kept};
  }
  if (vectors <= 1024) {
    return {256, 256, kept};
  }
  return {512, 512, vectors <= 2048 ? kept : 0};
}

inline bool is_whole(const FormProblem& problem) {
  const int64_t bytes = bytes_of(problem.x_dtype);
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  return is_aligned(problem.x, problem.x_rows, bytes) &&
         is_aligned(problem.gate, problem.gate_rows, bytes) &&
         is_aligned(problem.out, problem.out_rows, bytes) && aligned(problem.weight) &&
         aligned(problem.bias) && (problem.columns * bytes) % 16 == 0;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls launch(form, kept, is_whole) with the values as types.
template <typename Launch>
void with_form(Form form, const FormShape& shape, bool whole, const Launch& launch) {
  const auto with_kept = [&](auto form_constant) {
    if (shape.kept == 1) {
      launch(form_constant, Constant<1>(), std::true_type());
    } else if (shape.kept == 4) {
      launch(form_constant, Constant<4>(), std::true_type());
    } else if (whole) {
      launch(form_constant, Constant<0>(), std::true_type());
    } else {
      launch(form_constant, Constant<0>(), std::false_type());
    }
  };
  switch (form) {
    case Form::kNormThenGate:
      return with_kept(std::integral_constant<Form, Form::kNormThenGate>());
    case Form::kGateThenNorm:
      return with_kept(std::integral_constant<Form, Form::kGateThenNorm>());
    case Form::kLayer:
      return with_kept(std::integral_constant<Form, Form::kLayer>());
    case Form::kPlain:  // rms_norm_cuda.cu
      return;
  }
}

// Calls launch with a value of the dtype's storage type.
template <typename Launch>
void with_storage(Dtype dtype, const Launch& launch) {
  switch (dtype) {
    case Dtype::kFloat32:
      return launch(float());
    case Dtype::kBfloat16:
      return launch(Bf16());
    case Dtype::kFloat16:
      return launch(Fp16());
  }
}

}  // namespace graft_kernels::rms_norm

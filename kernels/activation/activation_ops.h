// The package's ops as functions on tensors; each device file implements `run`.
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"

namespace graft_kernels::activation {

// Does nothing lie between rows of so many columns?
inline bool is_dense(const RowLayout& layout, int64_t rows, int64_t columns) {
  return layout.num_dims == 1 && (rows <= 1 || layout.stride[0] == columns);
}

// out = function(input), element by element.
Problem check_unary(const char* op, Function function, const Tensor& out, const Tensor& input);
// `out` has the shape of `input` with the last dimension halved.
void check_halved(const char* op, NamedTensor out, NamedTensor input);
// out = function(first half) * second half of the last dimension; `swapped`: the other way round.
Problem check_halves(const char* op, Function function, bool swapped, const Tensor& out,
                     const Tensor& input);
// out = function(gate) * up.
Problem check_gated(const char* op, Function function, const Tensor& out, const Tensor& gate,
                    const Tensor& up);

// An op's name as a template argument.
template <size_t kLength>
struct Name {
  constexpr Name(const char (&name)[kLength]) {  // NOLINT(google-explicit-constructor)
    for (size_t i = 0; i < kLength; ++i) {
      text[i] = name[i];
    }
  }
  char text[kLength];
};

// All ops for a device whose work is done by kRun.
template <void (*kRun)(const Problem&, const Tensor& input)>
struct Ops {
  template <Name kName, Function kFunction>
  static void unary(Tensor& out, const Tensor& input) {
    kRun(check_unary(kName.text, kFunction, out, input), input);
  }
  template <Name kName, Function kFunction, bool kSwapped>
  static void halves(Tensor& out, const Tensor& input) {
    kRun(check_halves(kName.text, kFunction, kSwapped, out, input), input);
  }
  template <Name kName, Function kFunction>
  static void gated(Tensor& out, const Tensor& gate, const Tensor& up) {
    kRun(check_gated(kName.text, kFunction, out, gate, up), gate);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("silu", TORCH_BOX((&unary<"silu", Function::kSilu>)));
    library.impl("gelu", TORCH_BOX((&unary<"gelu", Function::kGelu>)));
    library.impl("gelu_tanh", TORCH_BOX((&unary<"gelu_tanh", Function::kGeluTanh>)));
    library.impl("gelu_new", TORCH_BOX((&unary<"gelu_new", Function::kGeluNew>)));
    library.impl("gelu_fast", TORCH_BOX((&unary<"gelu_fast", Function::kGeluFast>)));
    library.impl("gelu_quick", TORCH_BOX((&unary<"gelu_quick", Function::kGeluQuick>)));
    library.impl("silu_and_mul", TORCH_BOX((&halves<"silu_and_mul", Function::kSilu, false>)));
    library.impl("mul_and_silu", TORCH_BOX((&halves<"mul_and_silu", Function::kSilu, true>)));
    library.impl("gelu_and_mul", TORCH_BOX((&halves<"gelu_and_mul", Function::kGelu, false>)));
    library.impl("gelu_tanh_and_mul",
                 TORCH_BOX((&halves<"gelu_tanh_and_mul", Function::kGeluTanh, false>)));
    library.impl("silu_mul", TORCH_BOX((&gated<"silu_mul", Function::kSilu>)));
    library.impl("gelu_mul", TORCH_BOX((&gated<"gelu_mul", Function::kGelu>)));
    library.impl("gelu_tanh_mul", TORCH_BOX((&gated<"gelu_tanh_mul", Function::kGeluTanh>)));
  }
};

}  // namespace graft_kernels::activation

// The ops of the backward as functions on tensors; each device file implements `run`.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include "kernels/mlp/mlp_ops.h"

namespace graft_kernels::mlp {

// What the backward writes. Those of the weights and biases are absent where nobody wants them, those of the biases
// where there is no bias.
struct Gradients {
  Tensor x;
  std::optional<Tensor> gate_weight, up_weight, down_weight;
  std::optional<Tensor> gate_bias, up_bias, down_bias;
};

// Checks the arguments, and makes the tensors of the gradients. Throws std::runtime_error `[op] argument: expected …,
// got …`.
Function check_backward(const char* op, const Tensor& grad_out, const Arguments& arguments);
Gradients new_gradients(const Arguments& arguments, bool weights);

// The sum over the rows of a matrix, in float32.
inline Tensor column_sums(const Tensor& matrix) {
  const std::array<int64_t, 1> dims{0};
  return torch::stable::sum(matrix,
                            torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), dims.size()),
                            false, ScalarType::Float);
}

// The op for a device whose work is done by kRun.
template <void (*kRun)(Gradients& gradients, const Tensor& grad_out, const Arguments& arguments,
                       Function function)>
struct BackwardOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward(
      const Tensor& grad_out, const Tensor& x, const Tensor& gate_weight, const Tensor& up_weight,
      const Tensor& down_weight, int64_t act, const std::optional<Tensor>& gate_bias,
      const std::optional<Tensor>& up_bias, const std::optional<Tensor>& down_bias, bool weights) {
    const Arguments arguments{x,   gate_weight, up_weight, down_weight,
                              act, gate_bias,   up_bias,   down_bias};
    const Function function = check_backward("mlp_backward", grad_out, arguments);
    Gradients gradients = new_gradients(arguments, weights);
    kRun(gradients, grad_out, arguments, function);
    const auto or_empty = [&](const std::optional<Tensor>& tensor) {
      return tensor ? *tensor : torch::stable::new_empty(x, {0});
    };
    return {gradients.x,
            or_empty(gradients.gate_weight),
            or_empty(gradients.up_weight),
            or_empty(gradients.down_weight),
            or_empty(gradients.gate_bias),
            or_empty(gradients.up_bias),
            or_empty(gradients.down_bias)};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("mlp_backward", TORCH_BOX(&mlp_backward));
  }
};

}  // namespace graft_kernels::mlp

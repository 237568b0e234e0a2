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

// What a forward that trains kept of its products, [..., I] each: rounded to the dtype, biases added.
struct Kept {
  const Tensor& gate;
  const Tensor& up;
};

// Checks the arguments, and makes the tensors of the gradients. Throws std::runtime_error `[op] argument: expected …,
// got …`.
Function check_backward(const char* op, const Tensor& grad_out, const Arguments& arguments);
void check_kept(const char* op, const Kept& kept, const Arguments& arguments);
// A new tensor for a product of x with gate's or up's weight.
Tensor new_inner(const Arguments& arguments);
Gradients new_gradients(const Arguments& arguments, bool weights);

// The sum over the rows of a matrix, in float32.
inline Tensor column_sums(const Tensor& matrix) {
  const std::array<int64_t, 1> dims{0};
  return torch::stable::sum(matrix,
                            torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), dims.size()),
                            false, ScalarType::Float);
}

// The ops for a device: kTrain fills in out, gate and up, kRun the gradients, from `kept` where that is not null.
template <void (*kTrain)(Tensor& out, Tensor& gate, Tensor& up, const Arguments& arguments,
                         Function function),
          void (*kRun)(Gradients& gradients, const Tensor& grad_out, const Arguments& arguments,
                       const Kept* kept, Function function)>
struct BackwardOps {
  using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static std::tuple<Tensor, Tensor, Tensor> mlp_train(const Tensor& x, const Tensor& gate_weight,
                                                      const Tensor& up_weight,
                                                      const Tensor& down_weight, int64_t act,
                                                      const std::optional<Tensor>& gate_bias,
                                                      const std::optional<Tensor>& up_bias,
                                                      const std::optional<Tensor>& down_bias) {
    const Arguments arguments{x,   gate_weight, up_weight, down_weight,
                              act, gate_bias,   up_bias,   down_bias};
    Tensor out = new_output("mlp_train", x);
    const Function function = check_arguments("mlp_train", out, arguments);
    Tensor gate = new_inner(arguments), up = new_inner(arguments);
    kTrain(out, gate, up, arguments, function);
    return {out, gate, up};
  }
  static Seven mlp_backward(const Tensor& grad_out, const Tensor& x, const Tensor& gate_weight,
                            const Tensor& up_weight, const Tensor& down_weight, int64_t act,
                            const std::optional<Tensor>& gate_bias,
                            const std::optional<Tensor>& up_bias,
                            const std::optional<Tensor>& down_bias, bool weights) {
    return run("mlp_backward", grad_out, nullptr,
               {x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias},
               weights);
  }
  static Seven mlp_train_backward(const Tensor& grad_out, const Tensor& x, const Tensor& gate,
                                  const Tensor& up, const Tensor& gate_weight,
                                  const Tensor& up_weight, const Tensor& down_weight, int64_t act,
                                  const std::optional<Tensor>& gate_bias,
                                  const std::optional<Tensor>& up_bias,
                                  const std::optional<Tensor>& down_bias, bool weights) {
    const Kept kept{gate, up};
    return run("mlp_train_backward", grad_out, &kept,
               {x, gate_weight, up_weight, down_weight, act, gate_bias, up_bias, down_bias},
               weights);
  }
  static Seven run(const char* op, const Tensor& grad_out, const Kept* kept,
                   const Arguments& arguments, bool weights) {
    const Function function = check_backward(op, grad_out, arguments);
    if (kept != nullptr) {
      check_kept(op, *kept, arguments);
    }
    Gradients gradients = new_gradients(arguments, weights);
    kRun(gradients, grad_out, arguments, kept, function);
    const auto or_empty = [&](const std::optional<Tensor>& tensor) {
      return tensor ? *tensor : new_tensor(arguments.x, {0});
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
    library.impl("mlp_train", TORCH_BOX(&mlp_train));
    library.impl("mlp_backward", TORCH_BOX(&mlp_backward));
    library.impl("mlp_train_backward", TORCH_BOX(&mlp_train_backward));
  }
};

}  // namespace graft_kernels::mlp

// The package's ops as functions on tensors.
#pragma once

#include <optional>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/mlp/mlp.h"

namespace graft_kernels::mlp {

// What the ops have in common, in the order of their schemas.
struct Arguments {
  const Tensor& x;
  const Tensor& gate_weight;
  const Tensor& up_weight;
  const Tensor& down_weight;
  int64_t act;
  const std::optional<Tensor>& gate_bias;
  const std::optional<Tensor>& up_bias;
  const std::optional<Tensor>& down_bias;
};

// Throws std::runtime_error `[op] argument: expected …, got …`.
Function check_arguments(const char* op, const Tensor& out, const Arguments& arguments);

// A new tensor of x's shape and dtype.
Tensor new_output(const char* op, const Tensor& x);

// Both ops for a device whose work is done by kRun.
template <void (*kRun)(Tensor& out, const Arguments& arguments, Function function)>
struct Ops {
  static void mlp_out(Tensor out, const Tensor& x, const Tensor& gate_weight,
                      const Tensor& up_weight, const Tensor& down_weight, int64_t act,
                      const std::optional<Tensor>& gate_bias, const std::optional<Tensor>& up_bias,
                      const std::optional<Tensor>& down_bias) {
    const Arguments arguments{x,   gate_weight, up_weight, down_weight,
                              act, gate_bias,   up_bias,   down_bias};
    kRun(out, arguments, check_arguments("mlp_out", out, arguments));
  }
  static Tensor mlp(const Tensor& x, const Tensor& gate_weight, const Tensor& up_weight,
                    const Tensor& down_weight, int64_t act, const std::optional<Tensor>& gate_bias,
                    const std::optional<Tensor>& up_bias, const std::optional<Tensor>& down_bias) {
    Tensor out = new_output("mlp", x);
    const Arguments arguments{x,   gate_weight, up_weight, down_weight,
                              act, gate_bias,   up_bias,   down_bias};
    kRun(out, arguments, check_arguments("mlp", out, arguments));
    return out;
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("mlp_out", TORCH_BOX(&mlp_out));
    library.impl("mlp", TORCH_BOX(&mlp));
  }
};

}  // namespace graft_kernels::mlp

// linear_act as functions on tensors.
#pragma once

#include <optional>

#include "kernels/linear/linear_act.h"
#include "kernels/linear/linear_ops.h"

namespace graft_kernels::linear {

// What both ops have in common, in the order of their schemas.
struct ActArguments {
  const Tensor& x;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  int64_t act;
  const std::optional<Tensor>& residual;
};

// Throws std::runtime_error `[op] argument: expected …, got …`.
Activation check_act_arguments(const char* op, const Tensor& out, const ActArguments& arguments);

// Both ops for a device whose work is done by kRun(op, out, arguments, activation, rows of x), rows and columns
// from one on.
template <void (*kRun)(const char*, Tensor&, const ActArguments&, Activation, int64_t)>
struct ActOps {
  static void run(const char* op, Tensor& out, const ActArguments& arguments) {
    const Activation activation = check_act_arguments(op, out, arguments);
    if (out.numel() > 0) {
      kRun(op, out, arguments, activation, count_rows(arguments.x));
    }
  }
  static void linear_act_out(Tensor out, const Tensor& x, const Tensor& weight,
                             const std::optional<Tensor>& bias, int64_t act,
                             const std::optional<Tensor>& residual) {
    run("linear_act_out", out, {x, weight, bias, act, residual});
  }
  static Tensor linear_act(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                           int64_t act, const std::optional<Tensor>& residual) {
    check_has_rows("linear_act", {"x", x});
    check_weight("linear_act", "weight", x, weight);
    Tensor out = new_output(x, weight);
    run("linear_act", out, {x, weight, bias, act, residual});
    return out;
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("linear_act_out", TORCH_BOX(&linear_act_out));
    library.impl("linear_act", TORCH_BOX(&linear_act));
  }
};

// Products and bias of a device on their own (linear_cpu.cpp, linear_cuda.cu).
void run_products_cpu(Tensor& out, const Tensor& x, const Part& part, int64_t rows);
void run_products_cuda(Tensor& out, const Tensor& x, const Part& part, int64_t rows);

}  // namespace graft_kernels::linear

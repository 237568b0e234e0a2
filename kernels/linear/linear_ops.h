// The package's ops as functions on tensors.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/linear/linear.h"

namespace graft_kernels::linear {

// One weight of a call, and what its arguments are called in errors.
struct Part {
  Tensor weight;
  std::optional<Tensor> bias;
  const char* weight_name = "weight";
  const char* bias_name = "bias";
};

// Throws std::runtime_error `[op] argument: expected …, got …`.
void check_arguments(const char* op, const Tensor& out, const Tensor& x,
                     const std::vector<Part>& parts);

// A weight [M, K] that fits x.
void check_weight(const char* op, const char* name, const Tensor& x, const Tensor& weight);

// The arguments of linear_join_out as parts.
std::vector<Part> join_parts(const Tensor& first, const Tensor& second,
                             const std::optional<Tensor>& third,
                             const std::optional<Tensor>& first_bias,
                             const std::optional<Tensor>& second_bias,
                             const std::optional<Tensor>& third_bias);

// Rows of x as float32, one after the other, on the CPU; `storage` holds them where they had to be
// widened or moved together.
const float* float_rows(const char* op, const Tensor& x, int64_t rows, int64_t depth,
                        std::unique_ptr<float[]>& storage);

// A new tensor [..., M] of x's dtype.
Tensor new_output(const Tensor& x, const Tensor& weight);

// Calls run_part(columns of out, part) for every part that has columns.
template <typename RunPart>
void for_each_part(Tensor& out, const std::vector<Part>& parts, const RunPart& run_part) {
  int64_t column = 0;
  for (const Part& part : parts) {
    const int64_t columns = part.weight.size(0);
    if (columns > 0) {
      Tensor target =
          parts.size() == 1 ? out : torch::stable::narrow(out, out.dim() - 1, column, columns);
      run_part(target, part);
    }
    column += columns;
  }
}

// The ops for a device whose work is done by kRun(op, out, x, parts, rows of x), rows and columns from
// one on.
template <void (*kRun)(const char*, Tensor&, const Tensor&, const std::vector<Part>&, int64_t)>
struct Ops {
  static void run(const char* op, Tensor& out, const Tensor& x, const std::vector<Part>& parts) {
    check_arguments(op, out, x, parts);
    const int64_t rows = count_rows(x);
    if (rows > 0 && out.numel() > 0) {
      kRun(op, out, x, parts, rows);
    }
  }
  static void linear_out(Tensor out, const Tensor& x, const Tensor& weight,
                         const std::optional<Tensor>& bias) {
    run("linear_out", out, x, {{weight, bias}});
  }
  static void linear_join_out(Tensor out, const Tensor& x, const Tensor& first,
                              const Tensor& second, const std::optional<Tensor>& third,
                              const std::optional<Tensor>& first_bias,
                              const std::optional<Tensor>& second_bias,
                              const std::optional<Tensor>& third_bias) {
    run("linear_join_out", out, x,
        join_parts(first, second, third, first_bias, second_bias, third_bias));
  }
  static Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    check_has_rows("linear", {"x", x});
    Tensor out = new_output(x, weight);
    run("linear", out, x, {{weight, bias}});
    return out;
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("linear_out", TORCH_BOX(&linear_out));
    library.impl("linear", TORCH_BOX(&linear));
    library.impl("linear_join_out", TORCH_BOX(&linear_join_out));
  }
};

}  // namespace graft_kernels::linear

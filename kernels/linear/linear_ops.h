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

}  // namespace graft_kernels::linear

// The package's ops as functions on tensors.
#pragma once

#include <optional>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/linear/linear.h"

namespace graft_kernels::linear {

// Throws std::runtime_error `[op] argument: expected …, got …`.
void check_arguments(const char* op, const Tensor& out, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias);

// A new tensor [..., M] of x's dtype.
Tensor new_output(const Tensor& x, const Tensor& weight);

}  // namespace graft_kernels::linear

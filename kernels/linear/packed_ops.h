// The ops on packed weights as functions on tensors.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/linear/packed.h"

namespace graft_kernels::linear {

// Each throws std::runtime_error `[op] argument: expected …, got …`.

// The format of ggml's type number, for a weight of [rows, columns].
const PackedFormat& check_packed_shape(const char* op, int64_t type, int64_t rows, int64_t columns);

// A flat tensor of bytes, of the size that the weight's shape gives.
void check_bytes(const char* op, NamedTensor value, int64_t bytes);

const PackedFormat& check_packed_arguments(const char* op, const Tensor& out, const Tensor& x,
                                           const Tensor& packed, int64_t type, int64_t rows,
                                           const std::optional<Tensor>& bias);

// Bytes of ggml's blocks of [rows, columns].
int64_t block_bytes(const PackedFormat& format, int64_t rows, int64_t columns);

// A new tensor [..., rows] of x's dtype.
Tensor new_packed_output(const char* op, const Tensor& x, int64_t rows);

}  // namespace graft_kernels::linear

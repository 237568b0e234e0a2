// Argument checks of ops, written once. Messages read `[op] argument: expected …, got …`.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include <torch/csrc/stable/tensor.h>

#include "kernels/common/dtype.h"
#include "kernels/common/row_layout.h"

namespace graft_kernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct NamedTensor {
  const char* name;
  const Tensor& tensor;
};

// Throws std::runtime_error with `[op] argument: expected <expected>, got <got>`.
[[noreturn]] void fail(const char* op, const char* argument, const std::string& expected,
                       const std::string& got);

// As Tensor::scalar_type(), which asks libtorch for the number of one dtype after the other: a dozen calls for
// bfloat16, and checks ask often.
ScalarType scalar_type_of(const Tensor& tensor);
// The dtype of a tensor that passed check_floating.
Dtype dtype_of(const Tensor& tensor);

std::string to_text(ScalarType dtype);
std::string shape_text(const Tensor& tensor);
std::string device_text(const Tensor& tensor);

// float32, bfloat16 or float16.
void check_floating(const char* op, NamedTensor value);
// `value` has the dtype `dtype`, described as «that of `origin`».
void check_dtype(const char* op, NamedTensor value, ScalarType dtype, const char* origin);
void check_same_dtype(const char* op, NamedTensor value, NamedTensor like);
// `value` has the dtype of `like`, or float32.
void check_dtype_or_float32(const char* op, NamedTensor value, NamedTensor like);
void check_same_shape(const char* op, NamedTensor value, NamedTensor like);
void check_same_device(const char* op, NamedTensor value, NamedTensor like);
// The last dimension is contiguous (or has at most one element).
void check_rows(const char* op, NamedTensor value);
// The dtype and device of `like`, and a contiguous last dimension.
void check_like(const char* op, NamedTensor value, NamedTensor like);
// One element for each of `size`, described as `of`, and what check_like asks for.
void check_vector(const char* op, NamedTensor value, int64_t size, const char* of,
                  NamedTensor like);
// At least one dimension.
void check_has_rows(const char* op, NamedTensor value);

// Where the elements lie; null for tensors without memory (meta, and fake tensors while a graph is
// traced, whose pointers must not be asked for).
const void* read_pointer(const Tensor& tensor);
void* write_pointer(const Tensor& tensor);

// Number of rows: the product of all dimensions but the last.
int64_t count_rows(const Tensor& tensor);
// Leading dimensions collapsed; throws when more than RowLayout::kMaxDims remain.
RowLayout row_layout(const char* op, NamedTensor value);

}  // namespace graft_kernels

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

// One weight of a call, and what its arguments are called in errors.
struct PackedPart {
  Tensor packed;
  int64_t type = 0;
  int64_t rows = 0;
  std::optional<Tensor> bias;
  const char* packed_name = "packed";
  const char* bias_name = "bias";
};

void check_packed_parts(const char* op, const Tensor& out, const Tensor& x,
                        const std::vector<PackedPart>& parts);

// The arguments of packed_linear_join_out as parts.
std::vector<PackedPart> packed_join_parts(
    const Tensor& first, const Tensor& second, const std::optional<Tensor>& third,
    int64_t first_type, int64_t second_type, int64_t third_type, int64_t first_rows,
    int64_t second_rows, int64_t third_rows, const std::optional<Tensor>& first_bias,
    const std::optional<Tensor>& second_bias, const std::optional<Tensor>& third_bias);

// Bytes of ggml's blocks of [rows, columns].
int64_t block_bytes(const PackedFormat& format, int64_t rows, int64_t columns);

// A new tensor [..., rows] of x's dtype.
Tensor new_packed_output(const char* op, const Tensor& x, int64_t rows);

// The products for a device whose work is done by kRun(op, out, x, parts, round_x), elements of out from one on;
// their arguments are checked.
template <void (*kRun)(const char*, Tensor&, const Tensor&, const std::vector<PackedPart>&, bool)>
struct PackedOps {
  static void run(const char* op, Tensor& out, const Tensor& x,
                  const std::vector<PackedPart>& parts, bool round_x) {
    check_packed_parts(op, out, x, parts);
    if (out.numel() > 0) {
      kRun(op, out, x, parts, round_x);
    }
  }
  static void packed_linear_out(Tensor out, const Tensor& x, const Tensor& packed, int64_t type,
                                int64_t rows, const std::optional<Tensor>& bias, bool round_x) {
    run("packed_linear_out", out, x, {{packed, type, rows, bias}}, round_x);
  }
  static void packed_linear_join_out(Tensor out, const Tensor& x, const Tensor& first,
                                     const Tensor& second, const std::optional<Tensor>& third,
                                     int64_t first_type, int64_t second_type, int64_t third_type,
                                     int64_t first_rows, int64_t second_rows, int64_t third_rows,
                                     const std::optional<Tensor>& first_bias,
                                     const std::optional<Tensor>& second_bias,
                                     const std::optional<Tensor>& third_bias, bool round_x) {
    run("packed_linear_join_out", out, x,
        packed_join_parts(first, second, third, first_type, second_type, third_type, first_rows,
                          second_rows, third_rows, first_bias, second_bias, third_bias),
        round_x);
  }
  static Tensor packed_linear(const Tensor& x, const Tensor& packed, int64_t type, int64_t rows,
                              const std::optional<Tensor>& bias, bool round_x) {
    Tensor out = new_packed_output("packed_linear", x, rows);
    run("packed_linear", out, x, {{packed, type, rows, bias}}, round_x);
    return out;
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("packed_linear_out", TORCH_BOX(&packed_linear_out));
    library.impl("packed_linear_join_out", TORCH_BOX(&packed_linear_join_out));
    library.impl("packed_linear", TORCH_BOX(&packed_linear));
  }
};

}  // namespace graft_kernels::linear

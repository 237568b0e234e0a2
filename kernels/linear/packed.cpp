// y = x weight^T + bias with a weight kept in GGUF's blocks; and the layout that this reads.
//
// out     [..., M]  x's dtype                    contiguous
// x       [..., K]  float32, bfloat16, float16   last dimension contiguous, rows strided
// packed  uint8     what pack_weight gave for [M, K] of `type`
// type    ggml's number: Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8, Q4_K 12, Q5_K 13, Q6_K 14
// bias    [M]       x's dtype                    may be absent
// round_x           x is rounded to bytes, 32 columns to a scale, and products are sums of whole
//                   numbers; false: the weight's float32 values times x, sums in float32.
// With round_x a result lies within the sum over k of |weight[m][k]| * s / 2 of the exact one, s being
// the largest |x| of k's 32 columns / 127, but for float32 rounding. A row of x with a value that is
// not finite gives NaN then.
// On CUDA, more than 16 rows of x take the product of the weight's values rounded to x's dtype; x is not
// rounded then.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda; pack_weight: cpu (pack, then move)
// Autograd no, deterministic yes (independent of threads), thread-safe yes
// Source   ggml's block formats; torch.nn.functional.linear on the unpacked weight

#include "kernels/linear/packed_ops.h"

namespace graft_kernels::linear {

const PackedFormat& check_packed_shape(const char* op, int64_t type, int64_t rows,
                                       int64_t columns) {
  const PackedFormat* format = find_packed_format(type);
  if (format == nullptr) {
    std::string known;
    for (const PackedFormat& each : kPackedFormats) {
      known += (known.empty() ? "" : ", ") + std::to_string(each.type) + " (" + each.name + ")";
    }
    fail(op, "type", "one of " + known, std::to_string(type));
  }
  constexpr int64_t kMost = int64_t{1} << 31;  // no product of two overflows
  if (rows < 0 || rows > kMost) {
    fail(op, "rows", "0 to 2^31", std::to_string(rows));
  }
  if (columns < 0 || columns > kMost / 64 || columns % format->block_columns != 0) {
    fail(op, "columns",
         "a multiple of " + std::to_string(format->block_columns) + " (" + format->name +
             "), at most 2^25",
         std::to_string(columns));
  }
  return *format;
}

void check_bytes(const char* op, NamedTensor value, int64_t bytes) {
  if (value.tensor.scalar_type() != ScalarType::Byte || value.tensor.dim() != 1 ||
      value.tensor.size(0) != bytes || !value.tensor.is_contiguous()) {
    fail(op, value.name, "contiguous uint8 of shape [" + std::to_string(bytes) + "]",
         to_text(value.tensor.scalar_type()) + " " + shape_text(value.tensor));
  }
}

int64_t block_bytes(const PackedFormat& format, int64_t rows, int64_t columns) {
  return rows * (columns / format.block_columns) * format.block_bytes;
}

Tensor new_packed_output(const char* op, const Tensor& x, int64_t rows) {
  check_has_rows(op, {"x", x});
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = rows < 0 ? 0 : rows;
  return torch::stable::new_empty(x, {sizes.data(), sizes.size()});
}

const PackedFormat& check_packed_arguments(const char* op, const Tensor& out, const Tensor& x,
                                           const Tensor& packed, int64_t type, int64_t rows,
                                           const std::optional<Tensor>& bias) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  const int64_t depth = x.size(x.dim() - 1);
  const PackedFormat& format = check_packed_shape(op, type, rows, depth);
  check_bytes(op, {"packed", packed}, packed_bytes(format, rows, depth));
  check_same_device(op, {"packed", packed}, {"x", x});
  if (bias) {
    check_vector(op, {"bias", *bias}, rows, "rows", {"x", x});
  }
  bool same = out.dim() == x.dim() && out.size(out.dim() - 1) == rows && out.is_contiguous();
  for (int64_t dim = 0; same && dim + 1 < x.dim(); ++dim) {
    same = out.size(dim) == x.size(dim);
  }
  if (!same) {
    fail(op, "out", "contiguous, the shape of x with " + std::to_string(rows) + " columns",
         shape_text(out));
  }
  check_dtype(op, {"out", out}, x.scalar_type(), "that of x");
  check_same_device(op, {"out", out}, {"x", x});
  return format;
}

namespace {

void packed_linear_out_meta(Tensor out, const Tensor& x, const Tensor& packed, int64_t type,
                            int64_t rows, const std::optional<Tensor>& bias, bool) {
  check_packed_arguments("packed_linear_out", out, x, packed, type, rows, bias);
}

Tensor packed_linear_meta(const Tensor& x, const Tensor& packed, int64_t type, int64_t rows,
                          const std::optional<Tensor>& bias, bool) {
  Tensor out = new_packed_output("packed_linear", x, rows);
  check_packed_arguments("packed_linear", out, x, packed, type, rows, bias);
  return out;
}

Tensor pack_weight_meta(const Tensor& blocks, int64_t type, int64_t rows, int64_t columns) {
  const PackedFormat& format = check_packed_shape("pack_weight", type, rows, columns);
  check_bytes("pack_weight", {"blocks", blocks}, block_bytes(format, rows, columns));
  return torch::stable::new_empty(blocks, {packed_bytes(format, rows, columns)});
}

}  // namespace

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(Meta, ops) {
  ops.impl("packed_linear_out", TORCH_BOX(&graft_kernels::linear::packed_linear_out_meta));
  ops.impl("packed_linear", TORCH_BOX(&graft_kernels::linear::packed_linear_meta));
  ops.impl("pack_weight", TORCH_BOX(&graft_kernels::linear::pack_weight_meta));
}

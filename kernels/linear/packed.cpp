// y = x weight^T + bias with a weight kept in GGUF's blocks, two or three such products of one x in
// one call (packed_linear_join_out, whose result holds them beside each other), and the layout that
// these read (pack_weight).
//
// out     [..., M]  x's dtype                    contiguous
// x       [..., K]  float32, bfloat16, float16   last dimension contiguous, rows strided
// packed  uint8     what pack_weight gave for [M, K] of `type`
// type    ggml's number: Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8, Q4_K 12, Q5_K 13, Q6_K 14
// bias    [M]       x's dtype                    may be absent
// round_x           x may be rounded; false: the weight's float32 values times x, sums in float32.
// With round_x a result lies within the sum over k of |weight[m][k]| * s / 2 of the exact one, s being
// the largest |x| of k's 32 columns / 127, but for float32 rounding: the bound that holds on every
// device. On the CPU up to 16 rows are far closer: x becomes whole numbers of 15 bits, 32 columns to a
// scale. More rows are bfloat16 times the weight in bfloat16 where the processor multiplies tiles of
// it (AMX), else whole numbers of 7 bits. A row of x with a NaN gives NaN, one with an infinity NaN or
// infinities. On CUDA up to 16 rows are rounded to bytes, where a row with a value that is not finite
// gives NaN; more rows, not rounded, take the product of the weight's values in x's dtype.
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
  if (scalar_type_of(value.tensor) != ScalarType::Byte || value.tensor.dim() != 1 ||
      value.tensor.size(0) != bytes || !value.tensor.is_contiguous()) {
    fail(op, value.name, "contiguous uint8 of shape [" + std::to_string(bytes) + "]",
         to_text(scalar_type_of(value.tensor)) + " " + shape_text(value.tensor));
  }
}

int64_t block_bytes(const PackedFormat& format, int64_t rows, int64_t columns) {
  return rows * (columns / format.block_columns) * format.block_bytes;
}

Tensor new_packed_output(const char* op, const Tensor& x, int64_t rows) {
  check_has_rows(op, {"x", x});
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = rows < 0 ? 0 : rows;
  return new_tensor(x, {sizes.data(), sizes.size()});
}

void check_packed_parts(const char* op, const Tensor& out, const Tensor& x,
                        const std::vector<PackedPart>& parts) {
  check_floating(op, {"x", x});
  check_has_rows(op, {"x", x});
  check_rows(op, {"x", x});
  const int64_t depth = x.size(x.dim() - 1);
  int64_t columns = 0;
  for (const PackedPart& part : parts) {
    const PackedFormat& format = check_packed_shape(op, part.type, part.rows, depth);
    check_bytes(op, {part.packed_name, part.packed}, packed_bytes(format, part.rows, depth));
    check_same_device(op, {part.packed_name, part.packed}, {"x", x});
    if (part.bias) {
      check_vector(op, {part.bias_name, *part.bias}, part.rows, "rows", {"x", x});
    }
    columns += part.rows;
  }
  bool same = out.dim() == x.dim() && out.size(out.dim() - 1) == columns && out.is_contiguous();
  for (int64_t dim = 0; same && dim + 1 < x.dim(); ++dim) {
    same = out.size(dim) == x.size(dim);
  }
  if (!same) {
    fail(op, "out", "contiguous, the shape of x with " + std::to_string(columns) + " columns",
         shape_text(out));
  }
  check_dtype(op, {"out", out}, scalar_type_of(x), "that of x");
  check_same_device(op, {"out", out}, {"x", x});
}

std::vector<PackedPart> packed_join_parts(
    const Tensor& first, const Tensor& second, const std::optional<Tensor>& third,
    int64_t first_type, int64_t second_type, int64_t third_type, int64_t first_rows,
    int64_t second_rows, int64_t third_rows, const std::optional<Tensor>& first_bias,
    const std::optional<Tensor>& second_bias, const std::optional<Tensor>& third_bias) {
  std::vector<PackedPart> parts = {
      {first, first_type, first_rows, first_bias, "first", "first_bias"},
      {second, second_type, second_rows, second_bias, "second", "second_bias"}};
  if (third) {
    parts.push_back({*third, third_type, third_rows, third_bias, "third", "third_bias"});
  }
  return parts;
}

namespace {

void run_meta(const char*, Tensor&, const Tensor&, const std::vector<PackedPart>&, bool) {}

Tensor pack_weight_meta(const Tensor& blocks, int64_t type, int64_t rows, int64_t columns) {
  const PackedFormat& format = check_packed_shape("pack_weight", type, rows, columns);
  check_bytes("pack_weight", {"blocks", blocks}, block_bytes(format, rows, columns));
  return new_tensor(blocks, {packed_bytes(format, rows, columns)});
}

}  // namespace

using PackedMetaOps = PackedOps<&run_meta>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(Meta, ops) {
  graft_kernels::linear::PackedMetaOps::implement(ops);
  ops.impl("pack_weight", TORCH_BOX(&graft_kernels::linear::pack_weight_meta));
}

// The linear layer on packed weights, on the CPU: any number of rows of x, the weight read once for
// all of them.

#include <memory>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/linear/linear_ops.h"
#include "kernels/linear/packed_ops.h"

namespace graft_kernels::linear {

namespace {

// Bytes of weight, times rows of x, below which a second thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 16;

// x as bytes with their scales.
struct RoundedRows {
  std::unique_ptr<int8_t[]> codes;
  std::unique_ptr<float[]> scales, sums;
};

RoundedRows round_rows(PackedProblem& problem) {
  const auto count = static_cast<size_t>(problem.rows * problem.depth);
  RoundedRows rounded{std::unique_ptr<int8_t[]>(new int8_t[count]),
                      std::unique_ptr<float[]>(new float[count / 32]),
                      std::unique_ptr<float[]>(new float[count / 16])};
  const auto round_to = choose_isa<RoundFunction>(plain::round_to_bytes, avx2::round_to_bytes,
                                                  avx512::round_to_bytes);
  const int64_t depth = problem.depth;
  torch::stable::parallel_for(
      0, problem.rows, (1 << 14) / depth + 1, [&](int64_t begin, int64_t end) {
        const int64_t at = begin * depth;
        round_to(problem.x + at, (end - begin) * depth, rounded.codes.get() + at,
                 rounded.scales.get() + at / 32, rounded.sums.get() + at / 16);
      });
  problem.x_codes = rounded.codes.get();
  problem.x_scales = rounded.scales.get();
  problem.x_sums = rounded.sums.get();
  return rounded;
}

bool has_vnni() {
  static const bool has =
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
  return has && current_isa() == Isa::kAvx512;
}

void run(const PackedFormat& format, Tensor& out, const Tensor& x, const Tensor& packed,
         const std::optional<Tensor>& bias, bool round_x) {
  if (out.numel() == 0) {
    return;
  }
  PackedProblem problem;
  problem.format = &format;
  problem.dtype = dtype_of(x);
  problem.use_vnni = has_vnni();
  problem.rows = count_rows(x);
  problem.depth = x.size(x.dim() - 1);
  problem.columns = problem.out_stride = out.size(out.dim() - 1);
  problem.packed = static_cast<const uint8_t*>(packed.const_data_ptr());
  problem.bias = bias ? bias->const_data_ptr() : nullptr;
  problem.out = out.mutable_data_ptr();
  std::unique_ptr<float[]> wide;
  problem.x = float_rows("packed_linear", x, problem.rows, problem.depth, wide);
  RoundedRows rounded;
  if (round_x && problem.depth > 0) {
    rounded = round_rows(problem);
  }
  const auto groups =
      choose_isa<PackedFunction>(plain::packed_groups, avx2::packed_groups, avx512::packed_groups);
  const int64_t count = (problem.columns + kPackedRows - 1) / kPackedRows;
  const int64_t group_bytes = problem.depth / kPackedColumns * format.chunk_bytes() * problem.rows;
  const int64_t grain = kGrainBytes / (group_bytes + 1) + 1;
  spread(count, grain, [&](int64_t begin, int64_t end) { groups(problem, begin, end); });
}

void packed_linear_out(Tensor out, const Tensor& x, const Tensor& packed, int64_t type,
                       int64_t rows, const std::optional<Tensor>& bias, bool round_x) {
  const PackedFormat& format =
      check_packed_arguments("packed_linear_out", out, x, packed, type, rows, bias);
  run(format, out, x, packed, bias, round_x);
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, int64_t type, int64_t rows,
                     const std::optional<Tensor>& bias, bool round_x) {
  Tensor out = new_packed_output("packed_linear", x, rows);
  const PackedFormat& format =
      check_packed_arguments("packed_linear", out, x, packed, type, rows, bias);
  run(format, out, x, packed, bias, round_x);
  return out;
}

Tensor pack_weight(const Tensor& blocks, int64_t type, int64_t rows, int64_t columns) {
  const PackedFormat& format = check_packed_shape("pack_weight", type, rows, columns);
  check_bytes("pack_weight", {"blocks", blocks}, block_bytes(format, rows, columns));
  Tensor packed = torch::stable::new_empty(blocks, {packed_bytes(format, rows, columns)});
  const auto* from = static_cast<const uint8_t*>(blocks.const_data_ptr());
  auto* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, (rows + kPackedRows - 1) / kPackedRows, 16,
                              [&](int64_t begin, int64_t end) {
                                pack_groups(format, from, rows, columns, to, begin, end);
                              });
  return packed;
}

}  // namespace

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("packed_linear_out", TORCH_BOX(&graft_kernels::linear::packed_linear_out));
  ops.impl("packed_linear", TORCH_BOX(&graft_kernels::linear::packed_linear));
  ops.impl("pack_weight", TORCH_BOX(&graft_kernels::linear::pack_weight));
}

// The linear layer on the CPU. Few rows: our own dot products, bound by reading the weights once.
// Many rows: ATen's matrix product, on float32 panels of the weight where the dtype is narrower and
// the processor does not multiply it.

#include <algorithm>
#include <memory>

#include "kernels/common/aten.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/linear/linear_act_ops.h"

namespace graft_kernels::linear {

const float* float_rows(const char* op, const Tensor& x, int64_t rows, int64_t depth,
                        std::unique_ptr<float[]>& storage) {
  const Dtype dtype = dtype_of(x);
  if (dtype == Dtype::kFloat32 && x.is_contiguous()) {
    return static_cast<const float*>(x.const_data_ptr());
  }
  storage.reset(new float[static_cast<size_t>(rows * depth)]);
  const RowLayout layout = row_layout(op, {"x", x});
  const auto widen =
      choose_isa<WidenFunction>(plain::linear_widen, avx2::linear_widen, avx512::linear_widen);
  const auto* bytes = static_cast<const char*>(x.const_data_ptr());
  const int64_t element_bytes = bytes_of(dtype);
  for (int64_t row = 0; row < rows; ++row) {
    widen(dtype, bytes + layout.offset(row) * element_bytes, storage.get() + row * depth, depth);
  }
  return storage.get();
}

namespace {

// Bytes of weight below which a second thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 17;
// Rows of weight that are widened at a time: the panel stays in the second-level cache.
constexpr int64_t kPanelRows = 512;

// A part's columns as blocks of eight, so that a thread's border does not cost a slower tile.
struct PartBlocks {
  Problem problem;
  int64_t columns = 0;
  int64_t first_block = 0;  // counted over all parts
  int64_t end_block = 0;
};

std::vector<PartBlocks> describe_parts(const Tensor& out, const std::vector<Part>& parts,
                                       const Problem& shared) {
  std::vector<PartBlocks> described;
  const int64_t element_bytes = bytes_of(shared.dtype);
  auto* out_bytes = static_cast<char*>(out.mutable_data_ptr());
  int64_t block = 0;
  for (const Part& part : parts) {
    PartBlocks blocks{shared, part.weight.size(0), block, 0};
    blocks.problem.weight = part.weight.const_data_ptr();
    blocks.problem.bias = part.bias ? part.bias->const_data_ptr() : nullptr;
    blocks.problem.out = out_bytes;
    block += (blocks.columns + 7) / 8;
    blocks.end_block = block;
    out_bytes += blocks.columns * element_bytes;
    described.push_back(blocks);
  }
  return described;
}

void run_few_rows(const Tensor& out, const Tensor& x, const std::vector<Part>& parts,
                  int64_t rows) {
  std::unique_ptr<float[]> storage;
  Problem shared;
  shared.dtype = dtype_of(x);
  shared.rows = rows;
  shared.depth = x.size(x.dim() - 1);
  shared.x = float_rows("linear", x, rows, shared.depth, storage);
  shared.out_stride = out.size(out.dim() - 1);
  const std::vector<PartBlocks> described = describe_parts(out, parts, shared);
  const auto run = choose_isa<ColumnsFunction>(plain::linear_columns, avx2::linear_columns,
                                               avx512::linear_columns);
  const auto run_blocks = [&](int64_t begin, int64_t end) {
    for (const PartBlocks& part : described) {
      const int64_t first = std::max(begin, part.first_block), last = std::min(end, part.end_block);
      if (first < last) {
        run(part.problem, (first - part.first_block) * 8,
            std::min((last - part.first_block) * 8, part.columns));
      }
    }
  };
  const int64_t row_bytes = std::max<int64_t>(shared.depth * bytes_of(shared.dtype), 1);
  const int64_t blocks = described.back().end_block, grain = kGrainBytes / (row_bytes * 8) + 1;
  spread(blocks, grain, run_blocks);
}

void run_many_rows(Tensor& out, const Tensor& x, const Tensor& weight,
                   const std::optional<Tensor>& bias) {
  // Where the processor multiplies bfloat16 itself, ATen's product of it is the faster one.
  const bool direct = scalar_type_of(x) == ScalarType::Float ||
                      (scalar_type_of(x) == ScalarType::BFloat16 && multiplies_bf16());
  if (direct && !bias && out.is_contiguous()) {
    const int64_t depth = weight.size(1), columns = weight.size(0);
    Tensor matrix = torch::stable::view(out, {out.numel() / columns, columns});
    aten_product(matrix, torch::stable::reshape(x, {out.numel() / columns, depth}),
                 transposed(weight));
    return;
  }
  if (direct) {
    torch::stable::copy_(out, aten_linear(x, weight, bias));
    return;
  }
  const Tensor wide = torch::stable::to(x, ScalarType::Float);
  for (int64_t begin = 0; begin < weight.size(0); begin += kPanelRows) {
    const int64_t count = std::min(kPanelRows, weight.size(0) - begin);
    Tensor rows = weight, part = out;
    const Tensor panel =
        torch::stable::to(torch::stable::narrow(rows, 0, begin, count), ScalarType::Float);
    std::optional<Tensor> part_bias;
    if (bias) {
      Tensor whole = *bias;
      part_bias =
          torch::stable::to(torch::stable::narrow(whole, 0, begin, count), ScalarType::Float);
    }
    Tensor target = torch::stable::narrow(part, out.dim() - 1, begin, count);
    torch::stable::copy_(target, aten_linear(wide, panel, part_bias));
  }
}

void run_cpu(const char*, Tensor& out, const Tensor& x, const std::vector<Part>& parts,
             int64_t rows) {
  if (rows <= kMaxVectorRows) {
    return run_few_rows(out, x, parts, rows);
  }
  for_each_part(out, parts, [&](Tensor& target, const Part& part) {
    run_many_rows(target, x, part.weight, part.bias);
  });
}

}  // namespace

void run_products_cpu(Tensor& out, const Tensor& x, const Part& part, int64_t rows) {
  run_cpu("linear_act", out, x, {part}, rows);
}

using CpuOps = Ops<&run_cpu>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::linear::CpuOps::implement(ops); }

// The linear layer on CUDA. Few rows of a 16-bit dtype: our own products, bound by reading the weights
// once. All else: ATen's matrix product.

#include <vector>

#include "kernels/common/aten.h"
#include "kernels/common/few_rows_launch.h"
#include "kernels/linear/linear_act_ops.h"

namespace graft_kernels::linear {

namespace {

bool takes_few_rows(const Tensor& x, const RowLayout& layout, const std::vector<Part>& parts,
                    int64_t rows, int64_t columns) {
  bool fits = layout.num_dims == 1 && columns < INT32_MAX &&
              few_rows::takes_input(x, rows, rows > 1 ? layout.stride[0] : 0);
  for (const Part& part : parts) {
    fits = fits && few_rows::takes_weight(part.weight);
  }
  return fits;
}

void run_few_rows(const Tensor& out, const Tensor& x, const RowLayout& layout,
                  const std::vector<Part>& parts, int64_t rows) {
  few_rows::LinearProblem problem;
  int end = 0;
  for (size_t index = 0; index < few_rows::kMaxParts; ++index) {
    if (index < parts.size()) {
      const Part& part = parts[index];
      end += static_cast<int>(part.weight.size(0));
      problem.parts[index].weight = part.weight.const_data_ptr();
      problem.parts[index].bias = part.bias ? part.bias->const_data_ptr() : nullptr;
    }
    problem.parts[index].end = end;
  }
  problem.x = x.const_data_ptr();
  problem.x_stride = layout.stride[0];
  problem.rows = static_cast<int>(rows);
  problem.depth = static_cast<int>(x.size(x.dim() - 1));
  problem.out = out.mutable_data_ptr();
  problem.out_stride = end;
  few_rows::launch_linear(CudaScope(x), dtype_of(x), problem);
}

void run_many_rows(Tensor& out, const Tensor& x, const Part& part) {
  if (part.bias || !out.is_contiguous()) {
    torch::stable::copy_(out, aten_linear(x, part.weight, part.bias));
    return;
  }
  const int64_t depth = part.weight.size(1), columns = part.weight.size(0);
  Tensor matrix = torch::stable::view(out, {out.numel() / columns, columns});
  aten_product(matrix, torch::stable::reshape(x, {out.numel() / columns, depth}),
               transposed(part.weight));
}

void run_cuda(const char* op, Tensor& out, const Tensor& x, const std::vector<Part>& parts,
              int64_t rows) {
  const RowLayout layout = row_layout(op, {"x", x});
  if (takes_few_rows(x, layout, parts, rows, out.size(out.dim() - 1))) {
    return run_few_rows(out, x, layout, parts, rows);
  }
  for_each_part(out, parts,
                [&](Tensor& target, const Part& part) { run_many_rows(target, x, part); });
}

}  // namespace

void run_products_cuda(Tensor& out, const Tensor& x, const Part& part, int64_t rows) {
  run_cuda("linear_act", out, x, {part}, rows);
}

using CudaOps = Ops<&run_cuda>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::linear::CudaOps::implement(ops); }

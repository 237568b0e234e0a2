// linear_act on the CPU: the products of the linear layer, a block of rows at a time, whose activation and residual
// follow while the block is near.

#include <algorithm>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/linear/linear_act_ops.h"

namespace graft_kernels::linear {

namespace {

// Rows of many that are finished together: ATen packs the weight again for every block.
constexpr int64_t kBlockRows = 1024;
// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrain = 1 << 14;

void finish(Tensor& values, Activation activation, const void* residual) {
  if (activation == Activation::kNone && residual == nullptr) {
    return;
  }
  FinishProblem problem;
  problem.dtype = dtype_of(values);
  problem.activation = activation;
  problem.values = values.mutable_data_ptr();
  problem.residual = residual;
  const auto run =
      choose_isa<FinishFunction>(plain::linear_finish, avx2::linear_finish, avx512::linear_finish);
  // Borders between threads fall on whole vectors: tails have the same bits, but cost more.
  constexpr int64_t kPiece = 64;
  const int64_t count = values.numel();
  spread((count + kPiece - 1) / kPiece, kGrain / kPiece, [&](int64_t begin, int64_t end) {
    run(problem, begin * kPiece, std::min(end * kPiece, count));
  });
}

void run_cpu(const char*, Tensor& out, const ActArguments& arguments, Activation activation,
             int64_t rows) {
  const int64_t columns = arguments.weight.size(0), depth = arguments.weight.size(1);
  const Part part{arguments.weight, arguments.bias};
  Tensor all_x = torch::stable::reshape(arguments.x, {rows, depth});
  Tensor all_out = torch::stable::view(out, {rows, columns});
  std::optional<Tensor> all_residual;
  if (arguments.residual) {
    // The products are written where the results will be, so a residual that lies there is set aside.
    const bool in_place = arguments.residual->const_data_ptr() == out.const_data_ptr();
    all_residual = torch::stable::view(
        in_place ? torch::stable::clone(*arguments.residual) : *arguments.residual,
        {rows, columns});
  }
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows - begin);
    const Tensor x = torch::stable::narrow(all_x, 0, begin, count);
    Tensor block = torch::stable::narrow(all_out, 0, begin, count);
    run_products_cpu(block, x, part, count);
    if (all_residual) {
      const Tensor residual = torch::stable::narrow(*all_residual, 0, begin, count);
      finish(block, activation, residual.const_data_ptr());
    } else {
      finish(block, activation, nullptr);
    }
  }
}

}  // namespace

using ActCpuOps = ActOps<&run_cpu>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::linear::ActCpuOps::implement(ops); }

// Cross-entropy on the CPU: rows are spread over ATen's thread pool. The linear forms multiply
// float32 panels of hidden states and weights, whatever the dtype, so that logits are never rounded.

#include <algorithm>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/loss/loss_aten.h"
#include "kernels/loss/loss_ops.h"

namespace graft_kernels::loss {

namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrainElements = 1 << 14;
// Bytes of logits that exist at a time.
constexpr int64_t kChunkBytes = int64_t{64} << 20;
// Rows of a 16-bit weight that are widened at a time: the panel stays in the cache.
constexpr int64_t kPanelRows = 1024;

void check_labels(const Problem& problem) {
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t label = problem.labels[problem.label_rows.offset(row)];
    if (label != problem.options.ignore_index && (label < 0 || label >= problem.columns)) {
      fail("cross_entropy", "labels",
           "a column in [0, " + std::to_string(problem.columns) + ") or ignore_index (" +
               std::to_string(problem.options.ignore_index) + ")",
           std::to_string(label) + " in row " + std::to_string(row));
    }
  }
}

void compute_rows(const Problem& problem) {
  const auto rows = choose_isa<RowsFunction>(plain::loss_rows, avx2::loss_rows, avx512::loss_rows);
  const int64_t grain = kGrainElements / problem.columns + 1;
  spread(problem.rows, grain, [&](int64_t begin, int64_t end) { rows(problem, begin, end); });
}

void rows_cpu(const Problem& problem, const Tensor&) {
  if (problem.rows == 0) {
    return;
  }
  check_labels(problem);
  compute_rows(problem);
}

Tensor widen(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }

// out = start + a b
void add_product(Tensor& out, const Tensor& start, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), start.get(), a.get(), b.get(), 1.0, 1.0));
}

// Sums over chunks, in float32; the caller's own tensors where they are that.
struct Sums {
  std::optional<Tensor> weight, bias;

  explicit Sums(const LinearProblem& linear) {
    const auto float_like = [](const Tensor& tensor) {
      return tensor.scalar_type() == ScalarType::Float
                 ? tensor
                 : torch::stable::new_empty(tensor, tensor.sizes(), ScalarType::Float);
    };
    if (linear.grad_weight) {
      weight = float_like(*linear.grad_weight);
      if (linear.rows.rows == 0) {
        torch::stable::zero_(*weight);
      }
    }
    if (linear.grad_bias) {
      bias = float_like(*linear.grad_bias);
      torch::stable::zero_(*bias);
    }
  }
  void finish(LinearProblem& linear) {
    if (weight && linear.rows.dtype != Dtype::kFloat32) {
      torch::stable::copy_(*linear.grad_weight, *weight);
    }
    if (bias && linear.rows.dtype != Dtype::kFloat32) {
      torch::stable::copy_(*linear.grad_bias, *bias);
    }
  }
};

// Calls visit(first row, panel of the weight in float32) over the whole weight.
template <typename Visit>
void for_each_panel(const LinearProblem& linear, const Visit& visit) {
  const int64_t step = linear.rows.dtype == Dtype::kFloat32 ? linear.rows.columns : kPanelRows;
  for (int64_t begin = 0; begin < linear.rows.columns; begin += step) {
    const int64_t count = std::min(step, linear.rows.columns - begin);
    visit(begin, widen(rows_of(linear.weight, begin, count)));
  }
}

void fill_logits(const LinearProblem& linear, Tensor& logits, const Tensor& hidden) {
  for_each_panel(linear, [&](int64_t begin, const Tensor& panel) {
    Tensor part = torch::stable::narrow(logits, 1, begin, panel.size(0));
    if (linear.bias) {
      add_product(part, widen(rows_of(*linear.bias, begin, panel.size(0))), hidden,
                  transposed(panel));
    } else {
      aten_product(part, hidden, transposed(panel));
    }
  });
}

void spread_gradient(const LinearProblem& linear, Tensor& gradient, const Tensor& hidden,
                     int64_t first, Sums& sums) {
  Tensor own = rows_of(*linear.grad_hidden, first, hidden.size(0));
  Tensor wide = own.scalar_type() == ScalarType::Float
                    ? own
                    : torch::stable::new_empty(own, own.sizes(), ScalarType::Float);
  for_each_panel(linear, [&](int64_t begin, const Tensor& panel) {
    const Tensor part = torch::stable::narrow(gradient, 1, begin, panel.size(0));
    begin == 0 ? aten_product(wide, part, panel) : add_product(wide, wide, part, panel);
  });
  if (own.scalar_type() != ScalarType::Float) {
    torch::stable::copy_(own, wide);
  }
  if (sums.weight) {
    first == 0 ? aten_product(*sums.weight, transposed(gradient), hidden)
               : add_product(*sums.weight, *sums.weight, transposed(gradient), hidden);
  }
  if (sums.bias) {
    const Tensor more = column_sums(gradient);
    torch::stable::copy_(*sums.bias, torch::stable::subtract(*sums.bias, more, -1.0));
  }
}

void linear_cpu(LinearProblem& linear) {
  check_labels(linear.rows);
  Sums sums(linear);
  const int64_t step = chunk_rows_for(linear, kChunkBytes, linear.rows.columns * 4);
  for (int64_t begin = 0; begin < linear.rows.rows; begin += step) {
    const int64_t count = std::min(step, linear.rows.rows - begin);
    Tensor logits =
        torch::stable::new_empty(linear.hidden, {count, linear.rows.columns}, ScalarType::Float);
    const Tensor hidden = widen(rows_of(linear.hidden, begin, count));
    fill_logits(linear, logits, hidden);
    Problem chunk = chunk_of(linear, begin, count);
    chunk.dtype = Dtype::kFloat32;
    chunk.logits = chunk.grad = logits.mutable_data_ptr();
    chunk.logits_rows = chunk.grad_rows = row_layout("linear_cross_entropy", {"logits", logits});
    compute_rows(chunk);
    if (chunk.mode != Mode::kForward) {
      spread_gradient(linear, logits, hidden, begin, sums);
    }
  }
  sums.finish(linear);
}

}  // namespace

using CpuOps = Ops<&rows_cpu, &linear_cpu>;

}  // namespace graft_kernels::loss

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::loss::CpuOps::implement(ops); }

// What the host files of this package share: the checked problem over rows of logits, and the CPU
// rows.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/row_layout.h"

namespace graft_kernels::loss {

enum class Mode : int {
  kForward = 0,   // loss and lse of each row
  kBackward = 1,  // gradient of the logits; lse is known
  kTrain = 2,     // both at once
};

// What a row's loss is, beside its logits and its label.
struct Options {
  int64_t ignore_index = -100;
  float softcap = 0;    // logits become softcap * tanh(logits / softcap); 0 leaves them as they are
  float smoothing = 0;  // share of the target that is spread evenly over all columns
};

// A checked call. With z the logits after the soft cap and s the smoothing:
//   lse  = log(sum(exp(z)))
//   loss = lse - (1 - s) * z[label] - s * mean(z), 0 for an ignored row
//   grad = grad_loss * (exp(z - lse) - (1 - s) * [column == label] - s / columns) * dz/dlogits
struct Problem {
  Dtype dtype = Dtype::kFloat32;
  Mode mode = Mode::kForward;
  Options options;
  int64_t rows = 0;
  int64_t columns = 0;
  const void* logits = nullptr;      // [rows, columns]
  void* grad = nullptr;              // [rows, columns], may be the logits themselves
  const int64_t* labels = nullptr;   // [rows]
  const float* grad_loss = nullptr;  // [rows], a stride of zero where all rows count alike
  float* loss = nullptr;             // [rows], contiguous
  float* lse = nullptr;              // [rows], contiguous; read in kBackward
  RowLayout logits_rows, grad_rows, label_rows, grad_loss_rows;
};

// Computes rows [begin, end) of a problem with one instruction set.
using RowsFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::loss

// One entry per instruction set (loss_simd.cpp).
namespace graft_kernels::plain {
void loss_rows(const loss::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void loss_rows(const loss::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void loss_rows(const loss::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx512

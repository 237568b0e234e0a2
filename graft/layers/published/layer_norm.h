// kernels-community/layer-norm: dropout, residual sum and LayerNorm or RMSNorm in one op (CUDA).
// Shape letters: N rows (all leading dimensions), H hidden.
#pragma once

#include <optional>
#include <utility>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

struct NormOptions {
  double eps = 1e-5;
  bool is_rms = false;   // RMSNorm, else LayerNorm
  double dropout = 0.0;  // of the input, before the norm
};

class LayerNorm {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit LayerNorm(const kernel::LoadedKernel& kernel);

  // norm(dropout(x)) * weight + bias, in float32 and rounded once.
  //
  // x        [N..., H] float32, float16, bfloat16; H a multiple of 8, at most 8192
  // weight   [H] x's dtype or float32
  // bias     [H] as weight, or undefined
  // returns  [N..., H] in x's dtype; differentiable
  // Throws   IncompatibleError `layers.published.unsupported` naming the limit
  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const NormOptions& options) const;
  // (norm(dropout(x) + residual) * weight + bias, dropout(x) + residual), by the op for parallel
  // residuals with one branch: the plain one takes no residual. The sum is normalized before it is
  // rounded. residual as x or float32; the sum has residual's dtype. Differentiable.
  std::pair<at::Tensor, at::Tensor> add_forward(const at::Tensor& x, const at::Tensor& residual,
                                                const at::Tensor& weight, const at::Tensor& bias,
                                                const NormOptions& options) const;

  // Why rows of this length cannot be served; empty: they can.
  static std::string row_refusal(int64_t hidden);

 private:
  void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
             const NormOptions& options) const;

  std::string repository_;
  PublishedOp forward_;
  PublishedOp backward_;
  PublishedOp add_forward_;
  PublishedOp add_backward_;
};

}  // namespace graft::layers::published

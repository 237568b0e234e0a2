// The native part of kernels-community/mamba-ssm: the selective scan of Mamba-1. (Its convolution is in
// causal_conv1d.h; Mamba-2 and the step over a state are Triton and not here.)
// Shape letters: B batch, C channels, L length, N state size, G groups.
#pragma once

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/causal_conv1d.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

// What the scan reads beside u and delta; undefined tensors are absent.
struct ScanInputs {
  at::Tensor a;           // [C, N] float32, not complex; N at most 256
  at::Tensor b;           // [B, N, L] or [B, G, N, L] in u's dtype, or [C, N] in a's
  at::Tensor c;           // as b
  at::Tensor d;           // [C] float32: d * u is added
  at::Tensor z;           // [B, C, L]: the result is multiplied by silu(z)
  at::Tensor delta_bias;  // [C] float32, added to delta before the softplus
  bool delta_softplus = false;
};

struct ScanResult {
  at::Tensor out;         // [B, C, L] in u's dtype
  at::Tensor last_state;  // [B, C, N] float32; not differentiable
};

class SelectiveScan {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit SelectiveScan(const kernel::LoadedKernel& kernel);

  // h_t = exp(delta_t a) h_{t-1} + delta_t b_t u_t;   out_t = c_t h_t + d u_t, times silu(z_t)
  //
  // u, delta  [B, C, L] one dtype of float32, float16, bfloat16
  // Differentiable in every tensor; the gradient of last_state is not followed.
  // Throws   IncompatibleError `layers.published.unsupported` naming the limit
  ScanResult forward(const at::Tensor& u, const at::Tensor& delta, const ScanInputs& inputs) const;

 private:
  std::string repository_;
  PublishedOp forward_;
  PublishedOp backward_;
};

// The weights of a Mamba-1 mixer between its two projections.
struct MambaWeights {
  at::Tensor conv_weight;  // [C, W]
  at::Tensor conv_bias;    // [C] or undefined
  at::Tensor x_proj;       // [R + 2 N, C]
  at::Tensor dt_proj;      // [C, R]
  at::Tensor dt_bias;      // [C] float32 or undefined
  at::Tensor out_proj;     // [H, C]
  at::Tensor out_bias;     // [H] or undefined
  at::Tensor a;            // [C, N] float32
  at::Tensor d;            // [C] float32 or undefined
};

// mamba_inner_fn: xz [B, 2 C, L] -> [B, L, H]; convolution with SiLU, projections, scan with its gate.
// Differentiable; keeps what its parts keep (the published function recomputes instead).
at::Tensor mamba_inner(const CausalConv1d& conv, const SelectiveScan& scan, const at::Tensor& xz,
                       const MambaWeights& weights, bool delta_softplus = true);

}  // namespace graft::layers::published

// kernels-community/causal-conv1d, and the same ops in mamba-ssm: a causal depthwise convolution over
// time, its gradients, and its step over a state.
// Shape letters: B batch, C channels, L length, W width of the convolution (2 to 4).
#pragma once

#include <optional>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

struct ConvOptions {
  bool silu = false;          // SiLU of the result
  at::Tensor sequences;       // int32 [B, L], number of the packed sequence that a place belongs to
  at::Tensor initial_states;  // [B, C, W - 1], what lies before the first place; not with sequences
  bool want_final_states = false;
};

struct ConvResult {
  at::Tensor out;           // [B, C, L]
  at::Tensor final_states;  // [B, C, W - 1] where they were wanted
};

class CausalConv1d {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit CausalConv1d(const kernel::LoadedKernel& kernel);

  // out[b, c, l] = act(bias[c] + sum_w weight[c, w] x[b, c, l - W + 1 + w]), zero before the first.
  //
  // x        [B, C, L] float32, float16, bfloat16; any strides (channels last, or one copy, where
  //          sequences or states ask for it: C a multiple of 8 then)
  // weight   [C, W]
  // bias     [C] in weight's dtype, or undefined
  // Differentiable in x, weight, bias and initial_states, through out and final_states.
  // Throws   IncompatibleError `layers.published.unsupported` naming the limit
  ConvResult forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const ConvOptions& options) const;

  // One or more steps: reads and writes conv_state [B or more, C, at least W - 1], though the schema
  // does not say so. Not differentiable.
  //
  // x          [B, C] or [B, C, L] -> the same shape
  // lengths    int32 [B], makes the state a ring buffer; undefined: it is shifted
  // rows       int32 [B], rows of conv_state that the batch takes; undefined: the first B
  at::Tensor update(const at::Tensor& x, const at::Tensor& conv_state, const at::Tensor& weight,
                    const at::Tensor& bias, bool silu, const at::Tensor& lengths = {},
                    const at::Tensor& rows = {}) const;

 private:
  void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) const;

  std::string repository_;
  PublishedOp forward_;
  PublishedOp backward_;
  PublishedOp update_;
};

}  // namespace graft::layers::published

// kernels-community/vllm-moe (once `moe`): the compiled steps around a mixture of experts. Its fused
// product is Triton, so the layer itself is not here; nor is Marlin.
// Shape letters: T tokens, E experts, K experts of a token, H hidden.
#pragma once

#include <optional>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

struct TopExperts {
  at::Tensor weights;  // [T, K] float32
  at::Tensor experts;  // [T, K] int32
  at::Tensor sources;  // [T, K] int32, k * T + token
};

// Tokens grouped by expert, each group padded to whole blocks.
struct ExpertBlocks {
  at::Tensor token_ids;     // int32, places in [T * K]; T * K where padded
  at::Tensor expert_ids;    // int32, the expert of each block
  at::Tensor padded_count;  // int32 [1], used length of token_ids
};

struct Float8 {
  at::Tensor values;  // float8_e4m3fn, as the input
  at::Tensor scale;   // float32 [1], or [T, 1] per token
};

class MoeOps {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit MoeOps(const kernel::LoadedKernel& kernel);

  // logits [T, E] float32 -> the K largest of their softmax. Not renormalized.
  TopExperts top_experts(const at::Tensor& logits, int64_t k) const;
  // x [T, K, H] -> [T, H], summed over K. The schema marks the input as written; the output is.
  at::Tensor sum(const at::Tensor& x) const;
  // silu of the first half times the second: x [T, 2 H] -> [T, H].
  at::Tensor silu_and_mul(const at::Tensor& x) const;
  // experts [T, K] int32, in blocks of `block_size`.
  ExpertBlocks align(const at::Tensor& experts, int64_t num_experts, int64_t block_size) const;
  // x / scale in 8 bits; scale float32 [1].
  at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale) const;
  // With the scale of the whole tensor, or of every token (at most `bound`, float32 [1]).
  Float8 quantize_dynamic(const at::Tensor& x) const;
  Float8 quantize_per_token(const at::Tensor& x, const at::Tensor& bound = {}) const;

  // None of them is differentiable: inputs that need a gradient throw.
 private:
  std::string repository_;
  PublishedOp silu_and_mul_;
  PublishedOp topk_softmax_;
  PublishedOp moe_sum_;
  PublishedOp align_;
  PublishedOp static_quant_;
  PublishedOp dynamic_quant_;
  PublishedOp token_quant_;
};

}  // namespace graft::layers::published

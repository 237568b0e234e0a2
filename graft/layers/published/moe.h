// kernels-community/vllm-moe (once `moe`): the compiled steps around a mixture of experts. Its fused
// product is Triton, so the layer itself is not here; nor is Marlin, whose weights no op of the package packs.
// Shape letters: T tokens, E experts, K experts of a token, H hidden, N outputs of an expert.
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

// Matrices of the experts in 4 or 8 bits with a scale, and maybe a zero, for each group of a row's columns: what AWQ and
// GPTQ come down to.
struct QuantizedExperts {
  at::Tensor weights;  // uint8 [E, N, H * bits / 8]; of 4 bits the lower half is the first
  at::Tensor scales;   // [E, N, H / group], in the dtype of the input
  at::Tensor zeros;    // uint8 [E, N * bits / 8, H / group], likewise in rows; undefined: 8, or 128
  int64_t bits = 4;
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
  // experts [T, K] int32, in blocks of `block_size`. By sgl_moe_align_block_size where that is there and made for the
  // number of experts, which is 256.
  ExpertBlocks align(const at::Tensor& experts, int64_t num_experts, int64_t block_size) const;
  // x [T, H], float16 or bfloat16, times (weight - zero) scale of each of its K experts, and times `factors`, float32
  // [T, K] or undefined -> [T, K, N]. H one of 1, 2, 4, 8 groups: over more the op clears its output while it adds to it.
  // blocks   align() of experts [T, K] in blocks of `block_size`, up to 64
  at::Tensor multiply(const at::Tensor& x, const QuantizedExperts& experts,
                      const ExpertBlocks& blocks, int64_t k, int64_t block_size,
                      const at::Tensor& factors = {}) const;
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
  std::optional<PublishedOp> align_256_;
  std::optional<PublishedOp> wna16_;
};

}  // namespace graft::layers::published

// Llama: pre-norm blocks, grouped-query attention, SwiGLU.
// Class and weight names as in transformers' modeling_llama.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"
#include "graft/nn/mlp.h"

namespace graft::models {

class LlamaAttention : public nn::Block {
 public:
  LlamaAttention(const DecoderConfig& config, int64_t layer_idx);
  // x [B, S, H] -> [B, S, H]
  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const;

 private:
  int64_t layer_idx_;
  nn::AttentionOptions options_;
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
};

class LlamaDecoderLayer : public DecoderLayer {
 public:
  LlamaDecoderLayer(const DecoderConfig& config, int64_t layer_idx);
  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override;

 private:
  std::shared_ptr<LlamaAttention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
};

class LlamaForCausalLM : public DecoderForCausalLM {
 public:
  explicit LlamaForCausalLM(const DecoderConfig& config);
};

std::shared_ptr<DecoderForCausalLM> make_llama(const ConfigReader& reader,
                                               const ModelOptions& options);

}  // namespace graft::models

#include "graft/models/llama/llama_model.h"

namespace graft::models {

LlamaAttention::LlamaAttention(const DecoderConfig& config, int64_t layer_idx)
    : layer_idx_(layer_idx), options_(config.attention_options()) {
  const int64_t query_size = config.num_heads * config.head_dim;
  const int64_t kv_size = config.num_kv_heads * config.head_dim;
  q_proj_ = add<nn::Linear>("q_proj", config.hidden_size, query_size, config.attention_bias);
  k_proj_ = add<nn::Linear>("k_proj", config.hidden_size, kv_size, config.attention_bias);
  v_proj_ = add<nn::Linear>("v_proj", config.hidden_size, kv_size, config.attention_bias);
  o_proj_ = add<nn::Linear>("o_proj", query_size, config.hidden_size, config.attention_bias);
}

at::Tensor LlamaAttention::forward(const at::Tensor& x, const ForwardContext& context) const {
  const auto heads = project_heads(x, *q_proj_, *k_proj_, *v_proj_, options_.head_dim);
  return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_}, heads,
                                            context.rotary, context.full_mask, context));
}

LlamaDecoderLayer::LlamaDecoderLayer(const DecoderConfig& config, int64_t layer_idx)
    : self_attn_(add<LlamaAttention>("self_attn", config, layer_idx)),
      mlp_(add<nn::GatedMlp>("mlp", mlp_options(config))),
      input_layernorm_(add_norm("input_layernorm", config)),
      post_attention_layernorm_(add_norm("post_attention_layernorm", config)) {}

void LlamaDecoderLayer::forward(nn::ResidualStream& stream, const ForwardContext& context) const {
  stream.add(self_attn_->forward(stream.normalized(*input_layernorm_), context));
  stream.add(mlp_->forward(stream.normalized(*post_attention_layernorm_)));
}

LlamaForCausalLM::LlamaForCausalLM(const DecoderConfig& config)
    : DecoderForCausalLM(config, layers::RmsNormVariant::kCastBeforeWeight) {
  for (int64_t i = 0; i < config.num_layers; ++i) {
    append_layer<LlamaDecoderLayer>(config, i);
  }
}

std::shared_ptr<DecoderForCausalLM> make_llama(const ConfigReader& reader,
                                               const ModelOptions& options) {
  DecoderConfig config = read_decoder_config(reader, {});
  config.attention = options.attention;
  return std::make_shared<LlamaForCausalLM>(config);
}

}  // namespace graft::models

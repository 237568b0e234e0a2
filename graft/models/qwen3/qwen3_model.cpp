#include "graft/models/qwen3/qwen3_model.h"

namespace graft::models {

namespace {

constexpr auto kNorm = layers::RmsNormVariant::kCastBeforeWeight;

class Qwen3Attention : public nn::Block {
 public:
  Qwen3Attention(const DecoderConfig& config, int64_t layer_idx)
      : layer_idx_(layer_idx),
        layer_type_(config.layer_types[layer_idx]),
        options_(config.attention_options()) {
    const int64_t query_size = config.num_heads * config.head_dim;
    const int64_t kv_size = config.num_kv_heads * config.head_dim;
    q_proj_ = add<nn::Linear>("q_proj", config.hidden_size, query_size, config.attention_bias);
    k_proj_ = add<nn::Linear>("k_proj", config.hidden_size, kv_size, config.attention_bias);
    v_proj_ = add<nn::Linear>("v_proj", config.hidden_size, kv_size, config.attention_bias);
    o_proj_ = add<nn::Linear>("o_proj", query_size, config.hidden_size, config.attention_bias);
    q_norm_ = add<nn::RmsNorm>("q_norm", config.head_dim, config.rms_norm_eps, kNorm);
    k_norm_ = add<nn::RmsNorm>("k_norm", config.head_dim, config.rms_norm_eps, kNorm);
  }

  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const {
    const auto heads = project_heads(x, *q_proj_, *k_proj_, *v_proj_, options_.head_dim);
    const HeadNorms norms{*q_norm_, *k_norm_, qk_norm_rotary_};
    return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_, &norms},
                                              heads, context.rotary, context.mask(layer_type_),
                                              context));
  }

 private:
  int64_t layer_idx_;
  LayerType layer_type_;
  nn::AttentionOptions options_;
  // Before the slots that it encloses: q_norm, k_norm, rotary_fn.
  layers::Slot<layers::QkNormRotary> qk_norm_rotary_{*this, {kNorm}, "qk_norm_rotary"};
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
  std::shared_ptr<nn::RmsNorm> q_norm_;
  std::shared_ptr<nn::RmsNorm> k_norm_;
};

class Qwen3DecoderLayer : public DecoderLayer {
 public:
  Qwen3DecoderLayer(const DecoderConfig& config, int64_t layer_idx)
      : self_attn_(add<Qwen3Attention>("self_attn", config, layer_idx)),
        mlp_(add<nn::GatedMlp>("mlp", mlp_options(config))),
        input_layernorm_(add_norm("input_layernorm", config)),
        post_attention_layernorm_(add_norm("post_attention_layernorm", config)) {}

  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override {
    stream.add(self_attn_->forward(stream.normalized(*input_layernorm_), context));
    stream.add(mlp_->forward(stream.normalized(*post_attention_layernorm_)));
  }

 private:
  std::shared_ptr<Qwen3Attention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
};

class Qwen3ForCausalLM final : public DecoderForCausalLM {
 public:
  explicit Qwen3ForCausalLM(const DecoderConfig& config) : DecoderForCausalLM(config, kNorm) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<Qwen3DecoderLayer>(config, i);
    }
  }
};

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_qwen3(const ConfigReader& reader,
                                               const ModelOptions& options) {
  DecoderConfig config =
      read_decoder_config(reader, {.max_position_embeddings = 32768, .head_dim = 128});
  config.attention = options.attention;
  read_upper_window(reader, config);
  return std::make_shared<Qwen3ForCausalLM>(config);
}

}  // namespace graft::models

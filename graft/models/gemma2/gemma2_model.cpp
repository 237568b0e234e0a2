#include "graft/models/gemma2/gemma2_model.h"

#include <cmath>

namespace graft::models {

namespace {

constexpr auto kNorm = layers::RmsNormVariant::kZeroCentered;

struct Gemma2Config : DecoderConfig {
  double query_pre_attn_scalar = 256.0;
  double final_logit_softcapping = 0.0;  // 0: off
};

class Gemma2Attention : public nn::Block {
 public:
  Gemma2Attention(const Gemma2Config& config, int64_t layer_idx)
      : layer_idx_(layer_idx),
        layer_type_(config.layer_types[layer_idx]),
        options_(config.attention_options()) {
    options_.scale = 1.0 / std::sqrt(config.query_pre_attn_scalar);
    options_.softcap = config.attn_softcap;
    const int64_t query_size = config.num_heads * config.head_dim;
    const int64_t kv_size = config.num_kv_heads * config.head_dim;
    q_proj_ = add<nn::Linear>("q_proj", config.hidden_size, query_size, config.attention_bias);
    k_proj_ = add<nn::Linear>("k_proj", config.hidden_size, kv_size, config.attention_bias);
    v_proj_ = add<nn::Linear>("v_proj", config.hidden_size, kv_size, config.attention_bias);
    o_proj_ = add<nn::Linear>("o_proj", query_size, config.hidden_size, config.attention_bias);
  }

  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const {
    const auto heads = project_heads(x, *q_proj_, *k_proj_, *v_proj_, options_.head_dim);
    return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_}, heads,
                                              context.rotary, context.mask(layer_type_), context));
  }

 private:
  int64_t layer_idx_;
  LayerType layer_type_;
  nn::AttentionOptions options_;
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
};

class Gemma2DecoderLayer : public DecoderLayer {
 public:
  Gemma2DecoderLayer(const Gemma2Config& config, int64_t layer_idx)
      : self_attn_(add<Gemma2Attention>("self_attn", config, layer_idx)),
        mlp_(add<nn::GatedMlp>("mlp", mlp_options(config))),
        input_layernorm_(add_norm("input_layernorm", config, kNorm)),
        post_attention_layernorm_(add_norm("post_attention_layernorm", config, kNorm)),
        pre_feedforward_layernorm_(add_norm("pre_feedforward_layernorm", config, kNorm)),
        post_feedforward_layernorm_(add_norm("post_feedforward_layernorm", config, kNorm)) {}

  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override {
    stream.add(post_attention_layernorm_->forward(
        self_attn_->forward(stream.normalized(*input_layernorm_), context)));
    stream.add(post_feedforward_layernorm_->forward(
        mlp_->forward(stream.normalized(*pre_feedforward_layernorm_))));
  }

 private:
  std::shared_ptr<Gemma2Attention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
  std::shared_ptr<nn::RmsNorm> pre_feedforward_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_feedforward_layernorm_;
};

class Gemma2ForCausalLM final : public DecoderForCausalLM {
 public:
  explicit Gemma2ForCausalLM(const Gemma2Config& config)
      : DecoderForCausalLM(config, kNorm),
        embed_scale_(std::sqrt(static_cast<double>(config.hidden_size))),
        final_logit_softcapping_(config.final_logit_softcapping) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<Gemma2DecoderLayer>(config, i);
    }
  }

 protected:
  at::Tensor embed(const at::Tensor& input_ids) const override {
    return scaled_embedding(DecoderForCausalLM::embed(input_ids), embed_scale_);
  }

  double logit_softcap() const override { return final_logit_softcapping_; }

 private:
  double embed_scale_;
  double final_logit_softcapping_;
};

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_gemma2(const ConfigReader& reader,
                                                const ModelOptions& options) {
  Gemma2Config config;
  static_cast<DecoderConfig&>(config) =
      read_decoder_config(reader, {.max_position_embeddings = 8192,
                                   .num_kv_heads = 4,
                                   .head_dim = 256,
                                   .tie_word_embeddings = true,
                                   .activation_key = "hidden_activation",
                                   .activation = "gelu_pytorch_tanh"});
  config.attention = options.attention;
  config.mlp_bias = false;
  refuse_bidirectional(reader);
  config.query_pre_attn_scalar = reader.real("query_pre_attn_scalar", {1e-3, 1e6}, 256.0);
  config.attn_softcap = read_softcap(reader, "attn_logit_softcapping", 50.0);
  config.final_logit_softcapping = read_softcap(reader, "final_logit_softcapping", 30.0);
  config.sliding_window = read_sliding_window(reader, 4096);
  config.layer_types =
      read_layer_types(reader, config.num_layers, [](int64_t i) { return (i + 1) % 2 != 0; });
  return std::make_shared<Gemma2ForCausalLM>(config);
}

}  // namespace graft::models

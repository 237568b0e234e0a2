#include "graft/models/olmo2/olmo2_model.h"

namespace graft::models {

namespace {

constexpr auto kNorm = layers::RmsNormVariant::kCastAfterWeight;

class Olmo2Attention : public nn::Block {
 public:
  Olmo2Attention(const DecoderConfig& config, int64_t layer_idx)
      : layer_idx_(layer_idx), options_(config.attention_options()) {
    const int64_t query_size = config.num_heads * config.head_dim;
    const int64_t kv_size = config.num_kv_heads * config.head_dim;
    q_proj_ = add<nn::Linear>("q_proj", config.hidden_size, query_size, config.attention_bias);
    k_proj_ = add<nn::Linear>("k_proj", config.hidden_size, kv_size, config.attention_bias);
    v_proj_ = add<nn::Linear>("v_proj", config.hidden_size, kv_size, config.attention_bias);
    o_proj_ = add<nn::Linear>("o_proj", query_size, config.hidden_size, config.attention_bias);
    q_norm_ = add<nn::RmsNorm>("q_norm", query_size, config.rms_norm_eps, kNorm);
    k_norm_ = add<nn::RmsNorm>("k_norm", kv_size, config.rms_norm_eps, kNorm);
  }

  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const {
    const auto projected = nn::join_forward(x, {q_proj_.get(), k_proj_.get(), v_proj_.get()});
    const ProjectedHeads heads{split_heads(q_norm_->forward(projected[0]), options_.head_dim),
                               split_heads(k_norm_->forward(projected[1]), options_.head_dim),
                               split_heads(projected[2], options_.head_dim)};
    return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_}, heads,
                                              context.rotary, context.full_mask, context));
  }

 private:
  int64_t layer_idx_;
  nn::AttentionOptions options_;
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
  std::shared_ptr<nn::RmsNorm> q_norm_;
  std::shared_ptr<nn::RmsNorm> k_norm_;
};

class Olmo2DecoderLayer : public DecoderLayer {
 public:
  Olmo2DecoderLayer(const DecoderConfig& config, int64_t layer_idx)
      : self_attn_(add<Olmo2Attention>("self_attn", config, layer_idx)),
        mlp_(add<nn::GatedMlp>("mlp", mlp_options(config))),
        post_attention_layernorm_(add_norm("post_attention_layernorm", config, kNorm)),
        post_feedforward_layernorm_(add_norm("post_feedforward_layernorm", config, kNorm)) {}

  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override {
    stream.add(post_attention_layernorm_->forward(self_attn_->forward(stream.value(), context)));
    stream.add(post_feedforward_layernorm_->forward(mlp_->forward(stream.value())));
  }

 private:
  std::shared_ptr<Olmo2Attention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_feedforward_layernorm_;
};

class Olmo2ForCausalLM final : public DecoderForCausalLM {
 public:
  explicit Olmo2ForCausalLM(const DecoderConfig& config) : DecoderForCausalLM(config, kNorm) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<Olmo2DecoderLayer>(config, i);
    }
  }

 protected:
  void fill_rotary(ForwardContext& context, const at::Tensor& position_ids,
                   int64_t length) const override {
    context.rotary = rotary().tables(position_ids, length, at::kFloat);
  }
};

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_olmo2(const ConfigReader& reader,
                                               const ModelOptions& options) {
  DecoderConfig config = read_decoder_config(reader, {.rms_norm_eps = 1e-5});
  config.attention = options.attention;
  config.mlp_bias = false;
  return std::make_shared<Olmo2ForCausalLM>(config);
}

}  // namespace graft::models

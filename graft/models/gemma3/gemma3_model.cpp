#include "graft/models/gemma3/gemma3_model.h"

#include <cmath>

namespace graft::models {

namespace {

constexpr auto kNorm = layers::RmsNormVariant::kZeroCentered;

struct Gemma3TextConfig : DecoderConfig {
  double query_pre_attn_scalar = 256.0;
  double final_logit_softcapping = 0.0;  // 0: off
  nn::RopeParameters sliding_rope;
};

class Gemma3Attention : public nn::Block {
 public:
  Gemma3Attention(const Gemma3TextConfig& config, int64_t layer_idx)
      : layer_idx_(layer_idx),
        layer_type_(config.layer_types[layer_idx]),
        options_(config.attention_options()) {
    options_.scale = 1.0 / std::sqrt(config.query_pre_attn_scalar);
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
    const nn::RotaryTables& rotary =
        layer_type_ == LayerType::kSliding ? context.sliding_rotary : context.rotary;
    const auto heads = project_heads(x, *q_proj_, *k_proj_, *v_proj_, options_.head_dim);
    const HeadNorms norms{*q_norm_, *k_norm_, qk_norm_rotary_};
    return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_, &norms},
                                              heads, rotary, context.mask(layer_type_), context));
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

class Gemma3DecoderLayer : public DecoderLayer {
 public:
  Gemma3DecoderLayer(const Gemma3TextConfig& config, int64_t layer_idx)
      : self_attn_(add<Gemma3Attention>("self_attn", config, layer_idx)),
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
  std::shared_ptr<Gemma3Attention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
  std::shared_ptr<nn::RmsNorm> pre_feedforward_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_feedforward_layernorm_;
};

class Gemma3ForCausalLM final : public DecoderForCausalLM {
 public:
  explicit Gemma3ForCausalLM(const Gemma3TextConfig& config)
      : DecoderForCausalLM(config, kNorm),
        embed_scale_(std::sqrt(static_cast<double>(config.hidden_size))),
        final_logit_softcapping_(config.final_logit_softcapping),
        sliding_rotary_(config.sliding_rope, config.head_dim) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<Gemma3DecoderLayer>(config, i);
    }
  }

 protected:
  at::Tensor embed(const at::Tensor& input_ids) const override {
    return scaled_embedding(DecoderForCausalLM::embed(input_ids), embed_scale_);
  }

  double logit_softcap() const override { return final_logit_softcapping_; }

  void fill_rotary(ForwardContext& context, const at::Tensor& position_ids,
                   int64_t length) const override {
    DecoderForCausalLM::fill_rotary(context, position_ids, length);
    context.sliding_rotary = sliding_rotary_.tables(position_ids, length, dtype());
  }

 private:
  double embed_scale_;
  double final_logit_softcapping_;
  nn::RotaryEmbedding sliding_rotary_;
};

// New configs nest one set of rope parameters per layer type; old ones say rope_theta, rope_scaling
// (full layers alone) and rope_local_base_freq.
void read_rope_pair(const ConfigReader& reader, Gemma3TextConfig& config) {
  const ConfigReader nested = reader.object("rope_parameters");
  const ConfigReader full =
      reader.has("rope_scaling") ? reader.object("rope_scaling") : nested.object("full_attention");
  config.rope = read_rope(reader, full, config, 1e6);
  nlohmann::json sliding = nested.object("sliding_attention").raw();
  if (!sliding.contains("rope_theta")) {
    sliding["rope_theta"] = reader.real("rope_local_base_freq", {1e-3, 1e15}, 10000.0);
  }
  config.sliding_rope = read_rope(
      reader, {sliding, reader.where() + "#rope_parameters#sliding_attention"}, config, 10000.0);
}

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_gemma3(const ConfigReader& reader,
                                                const ModelOptions& options) {
  Gemma3TextConfig config;
  static_cast<DecoderConfig&>(config) =
      read_decoder_config(reader, {.max_position_embeddings = 131072,
                                   .num_kv_heads = 4,
                                   .head_dim = 256,
                                   .rope_theta = 1e6,
                                   .tie_word_embeddings = true,
                                   .activation_key = "hidden_activation",
                                   .activation = "gelu_pytorch_tanh"});
  config.attention = options.attention;
  config.mlp_bias = false;
  refuse_bidirectional(reader);
  config.query_pre_attn_scalar = reader.real("query_pre_attn_scalar", {1e-3, 1e6}, 256.0);
  config.final_logit_softcapping = read_softcap(reader, "final_logit_softcapping", 0.0);
  config.sliding_window = read_sliding_window(reader, 4096);
  const int64_t pattern = reader.integer("sliding_window_pattern", {1, 4096}, 6);
  config.layer_types = read_layer_types(reader, config.num_layers,
                                        [&](int64_t i) { return (i + 1) % pattern != 0; });
  read_rope_pair(reader, config);
  return std::make_shared<Gemma3ForCausalLM>(config);
}

}  // namespace graft::models

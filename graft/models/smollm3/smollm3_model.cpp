#include "graft/models/smollm3/smollm3_model.h"

#include <tuple>
#include <vector>

namespace graft::models {

namespace {

class SmolLM3Attention : public nn::Block {
 public:
  SmolLM3Attention(const DecoderConfig& config, int64_t layer_idx, bool use_rope)
      : layer_idx_(layer_idx),
        use_rope_(use_rope),
        layer_type_(config.layer_types[layer_idx]),
        options_(config.attention_options()) {
    const int64_t query_size = config.num_heads * config.head_dim;
    const int64_t kv_size = config.num_kv_heads * config.head_dim;
    q_proj_ = add<nn::Linear>("q_proj", config.hidden_size, query_size, config.attention_bias);
    k_proj_ = add<nn::Linear>("k_proj", config.hidden_size, kv_size, config.attention_bias);
    v_proj_ = add<nn::Linear>("v_proj", config.hidden_size, kv_size, config.attention_bias);
    o_proj_ = add<nn::Linear>("o_proj", query_size, config.hidden_size, config.attention_bias);
  }

  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const {
    const auto heads = project_heads(x, *q_proj_, *k_proj_, *v_proj_, options_.head_dim);
    return o_proj_->forward(
        rotate_and_attend({layer_idx_, use_rope_ ? &rotary_ : nullptr, attention_, options_}, heads,
                          context.rotary, context.mask(layer_type_), context));
  }

 private:
  int64_t layer_idx_;
  bool use_rope_;
  LayerType layer_type_;
  nn::AttentionOptions options_;
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> q_proj_;
  std::shared_ptr<nn::Linear> k_proj_;
  std::shared_ptr<nn::Linear> v_proj_;
  std::shared_ptr<nn::Linear> o_proj_;
};

class SmolLM3DecoderLayer : public DecoderLayer {
 public:
  SmolLM3DecoderLayer(const DecoderConfig& config, int64_t layer_idx, bool use_rope)
      : self_attn_(add<SmolLM3Attention>("self_attn", config, layer_idx, use_rope)),
        mlp_(add<nn::GatedMlp>("mlp", mlp_options(config))),
        input_layernorm_(add_norm("input_layernorm", config)),
        post_attention_layernorm_(add_norm("post_attention_layernorm", config)) {}

  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override {
    stream.add(self_attn_->forward(stream.normalized(*input_layernorm_), context));
    stream.add(mlp_->forward(stream.normalized(*post_attention_layernorm_)));
  }

 private:
  std::shared_ptr<SmolLM3Attention> self_attn_;
  std::shared_ptr<nn::GatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
};

class SmolLM3ForCausalLM final : public DecoderForCausalLM {
 public:
  SmolLM3ForCausalLM(const DecoderConfig& config, const std::vector<int64_t>& use_rope)
      : DecoderForCausalLM(config, layers::RmsNormVariant::kCastBeforeWeight) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<SmolLM3DecoderLayer>(config, i, use_rope[i] != 0);
    }
  }
};

// `no_rope_layers`: 1 where a layer rotates, 0 where it does not, despite the name.
std::vector<int64_t> read_rope_layers(const ConfigReader& reader, int64_t num_layers) {
  if (reader.has("no_rope_layers")) {
    return reader.integers("no_rope_layers", {0, 1}, static_cast<size_t>(num_layers));
  }
  const int64_t interval = reader.integer("no_rope_layer_interval", {1, 4096}, 4);
  std::vector<int64_t> layers;
  for (int64_t i = 0; i < num_layers; ++i) {
    layers.push_back((i + 1) % interval != 0 ? 1 : 0);
  }
  return layers;
}

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_smollm3(const ConfigReader& reader,
                                                 const ModelOptions& options) {
  DecoderConfig config = read_decoder_config(reader, {.max_position_embeddings = 32768,
                                                      .num_kv_heads = 4,
                                                      .rope_theta = 2e6,
                                                      .tie_word_embeddings = true});
  config.attention = options.attention;
  const std::vector<int64_t> use_rope = read_rope_layers(reader, config.num_layers);
  if (reader.boolean("use_sliding_window", false)) {
    config.sliding_window = read_sliding_window(reader, 0);
  }
  if (config.sliding_window > 0) {
    config.layer_types =
        read_layer_types(reader, config.num_layers, [&](int64_t i) { return use_rope[i] == 0; });
  }
  return std::make_shared<SmolLM3ForCausalLM>(config, use_rope);
}

}  // namespace graft::models

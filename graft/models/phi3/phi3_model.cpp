#include "graft/models/phi3/phi3_model.h"

#include <algorithm>

namespace graft::models {

namespace {

class Phi3Attention : public nn::Block {
 public:
  Phi3Attention(const DecoderConfig& config, int64_t layer_idx)
      : layer_idx_(layer_idx),
        layer_type_(config.layer_types[layer_idx]),
        query_size_(config.num_heads * config.head_dim),
        kv_size_(config.num_kv_heads * config.head_dim),
        options_(config.attention_options()) {
    o_proj_ = add<nn::Linear>("o_proj", query_size_, config.hidden_size, false);
    qkv_proj_ = add<nn::Linear>("qkv_proj", config.hidden_size, query_size_ + 2 * kv_size_, false);
  }

  at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const {
    const at::Tensor qkv = qkv_proj_->forward(x);
    const int64_t dim = options_.head_dim;
    const ProjectedHeads heads{split_heads(qkv.narrow(-1, 0, query_size_), dim),
                               split_heads(qkv.narrow(-1, query_size_, kv_size_), dim),
                               split_heads(qkv.narrow(-1, query_size_ + kv_size_, kv_size_), dim)};
    return o_proj_->forward(rotate_and_attend({layer_idx_, &rotary_, attention_, options_}, heads,
                                              context.rotary, context.mask(layer_type_), context));
  }

 private:
  int64_t layer_idx_;
  LayerType layer_type_;
  int64_t query_size_;
  int64_t kv_size_;
  nn::AttentionOptions options_;
  layers::Slot<layers::Rotary> rotary_{*this, {}, "rotary_fn"};
  nn::AttentionSlot attention_{*this, {}, "attention"};
  std::shared_ptr<nn::Linear> o_proj_;
  std::shared_ptr<nn::Linear> qkv_proj_;
};

class Phi3DecoderLayer : public DecoderLayer {
 public:
  Phi3DecoderLayer(const DecoderConfig& config, int64_t layer_idx)
      : self_attn_(add<Phi3Attention>("self_attn", config, layer_idx)),
        mlp_(add<nn::FusedGatedMlp>("mlp", mlp_options(config))),
        input_layernorm_(add_norm("input_layernorm", config)),
        post_attention_layernorm_(add_norm("post_attention_layernorm", config)) {}

  void forward(nn::ResidualStream& stream, const ForwardContext& context) const override {
    stream.add(self_attn_->forward(stream.normalized(*input_layernorm_), context));
    stream.add(mlp_->forward(stream.normalized(*post_attention_layernorm_)));
  }

 private:
  std::shared_ptr<Phi3Attention> self_attn_;
  std::shared_ptr<nn::FusedGatedMlp> mlp_;
  std::shared_ptr<nn::RmsNorm> input_layernorm_;
  std::shared_ptr<nn::RmsNorm> post_attention_layernorm_;
};

class Phi3ForCausalLM final : public DecoderForCausalLM {
 public:
  explicit Phi3ForCausalLM(const DecoderConfig& config)
      : DecoderForCausalLM(config, layers::RmsNormVariant::kCastBeforeWeight) {
    for (int64_t i = 0; i < config.num_layers; ++i) {
      append_layer<Phi3DecoderLayer>(config, i);
    }
  }
};

}  // namespace

std::shared_ptr<DecoderForCausalLM> make_phi3(const ConfigReader& reader,
                                              const ModelOptions& options) {
  DecoderConfig config =
      read_decoder_config(reader, {.max_position_embeddings = 4096, .rms_norm_eps = 1e-5});
  config.attention = options.attention;
  config.mlp_bias = false;
  if (config.rope.type == nn::RopeType::kLongRope) {
    config.rope_switch_length = config.rope.original_max_position_embeddings;
  }
  config.sliding_window = read_sliding_window(reader, 0);
  std::fill(config.layer_types.begin(), config.layer_types.end(),
            config.sliding_window > 0 ? LayerType::kSliding : LayerType::kFull);
  return std::make_shared<Phi3ForCausalLM>(config);
}

}  // namespace graft::models

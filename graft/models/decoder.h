// The frame of a decoder-only model: embedding, layers, final norm, head. What happens inside a
// layer is each family's own code (llama/, qwen2/, …).
// Shape letters: B batch, S new tokens, T all tokens, H hidden.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "graft/models/causal_lm.h"
#include "graft/models/decoder_config.h"
#include "graft/nn/attention.h"
#include "graft/nn/block.h"
#include "graft/nn/linear.h"
#include "graft/nn/mlp.h"
#include "graft/nn/rms_norm.h"
#include "graft/nn/rotary.h"

namespace graft::models {

// What one forward pass computes once for all layers.
struct ForwardContext {
  nn::AttentionMask full_mask;
  nn::AttentionMask sliding_mask;
  nn::RotaryTables rotary;
  nn::RotaryTables sliding_rotary;  // only where sliding layers have tables of their own
  nn::KvCache* cache = nullptr;
  const nn::DeviceSteps* steps = nullptr;  // of the cache, where it counts on the device
  // The last layer of a pass that wants one row of logits: only the last position goes on.
  bool last_query_only = false;

  const nn::AttentionMask& mask(LayerType type) const {
    return type == LayerType::kSliding ? sliding_mask : full_mask;
  }
};

class DecoderLayer : public nn::Block {
 public:
  // Adds this layer's contributions to the stream.
  virtual void forward(nn::ResidualStream& stream, const ForwardContext& context) const = 0;

 protected:
  // A norm over the hidden size with the config's eps.
  std::shared_ptr<nn::RmsNorm> add_norm(
      const std::string& name, const DecoderConfig& config,
      layers::RmsNormVariant variant = layers::RmsNormVariant::kCastBeforeWeight);
};

// [B, S, heads * D] -> [B, S, heads, D], a view.
at::Tensor split_heads(const at::Tensor& x, int64_t head_dim);

// What attention projects from its input, each [B, S, heads, D].
struct ProjectedHeads {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
};
ProjectedHeads project_heads(const at::Tensor& x, const nn::Linear& q_proj,
                             const nn::Linear& k_proj, const nn::Linear& v_proj, int64_t head_dim);

// x times a scale that is rounded to x's dtype first (Gemma's embedding).
at::Tensor scaled_embedding(const at::Tensor& x, double scale);

// cap * tanh(x / cap); x itself when cap is 0 (Gemma's logits).
at::Tensor soft_capped(const at::Tensor& x, double cap);

nn::MlpOptions mlp_options(const DecoderConfig& config);

// Norms over each head of query and key, and the slot of a kernel that norms and rotates at once.
struct HeadNorms {
  const nn::RmsNorm& query;
  const nn::RmsNorm& key;
  const layers::Slot<layers::QkNormRotary>& joined;
};

// Where a layer's attention stands in the model, and what it calls.
struct AttentionPlace {
  int64_t layer_idx = 0;
  const layers::Slot<layers::Rotary>* rotary = nullptr;  // null: positions turn nothing here
  const nn::AttentionSlot& kernel;
  const nn::AttentionOptions& options;
  const HeadNorms* norms = nullptr;  // null: heads are rotated as they are
};

// Norms query and key where the place says so, turns them by their positions, appends key and value to the cache, where there is one, and
// attends.
//
// heads  query [B, S, Hq, D], key and value [B, S, Hkv, D]
// Returns [B, S, Hq * D], or [B, 1, Hq * D] where the context asks for the last query only.
at::Tensor rotate_and_attend(const AttentionPlace& place, const ProjectedHeads& heads,
                             const layers::RotaryTables& tables, const nn::AttentionMask& mask,
                             const ForwardContext& context);

// The weights under `model.`.
class DecoderModel final : public nn::Block {
 public:
  DecoderModel(const DecoderConfig& config, layers::RmsNormVariant norm_variant);

  std::shared_ptr<nn::Embedding> embed_tokens;
  std::shared_ptr<nn::BlockList<DecoderLayer>> layers;
  std::shared_ptr<nn::RmsNorm> norm;
};

class DecoderForCausalLM : public CausalLM {
 public:
  DecoderForCausalLM(const DecoderConfig& config, layers::RmsNormVariant norm_variant);

  at::Tensor forward(const ForwardInput& input) final;
  at::Tensor loss(const ForwardInput& input, const at::Tensor& labels, int64_t num_items) final;
  std::unique_ptr<nn::KvCache> make_cache(int64_t batch_size, int64_t max_length) const final;
  std::string device_steps_refusal() const final;
  void count_on_device(nn::KvCache& cache, const at::Tensor& attention_mask) const final;
  void set_attn_implementation(const std::string& name) final;
  const std::string& attn_implementation() const final { return attention_.name; }
  std::vector<nn::AttentionCandidate> attention_candidates(int64_t num_queries) const final;
  const CausalLMInfo& info() const final { return info_; }
  // Of the final norm: matrices may be packed.
  at::Device device() const final { return model_->norm->weight.device(); }
  at::ScalarType dtype() const final { return model_->norm->weight.scalar_type(); }

  // What the model will ask of its attention once its weights are in `dtype` on `device`. Throws   as
  // set_attn_implementation(); the loader calls it before it reads weights.
  void check_attention(at::ScalarType dtype, at::Device device, bool training) const;

  // Called by the loader once all weights are in: ties the head and counts parameters.
  // config_json is what transformers would have as config.json. A trainable model gets a slot for its
  // loss.
  void finish_loading(const std::string& folder, const std::string& weights_file,
                      const std::string& config_json, bool trainable);
  bool tied() const { return config_.tie_word_embeddings; }

 protected:
  template <typename Layer, typename... Args>
  void append_layer(Args&&... args) {
    model_->layers->append<Layer>(std::forward<Args>(args)...);
  }

  // ids [B, S] -> [B, S, H]. Gemma scales here.
  virtual at::Tensor embed(const at::Tensor& input_ids) const;
  // Logits become cap * tanh(logits / cap); 0: they stay. Gemma2 and Gemma3 have one.
  virtual double logit_softcap() const { return 0.0; }
  // Fills the rotary tables of `context`. Gemma3 has two, olmo2 keeps them in float32.
  virtual void fill_rotary(ForwardContext& context, const at::Tensor& position_ids,
                           int64_t length) const;

  const nn::RotaryEmbedding& rotary() const { return rotary_; }

 private:
  // Scaled dot-product attention knows no soft cap, so models with one then attend eagerly.
  void adopt_attention(nn::AttentionChoice choice);
  nn::AttentionNeeds attention_needs(at::ScalarType dtype, at::Device device, bool training) const;
  ForwardContext make_context(const ForwardInput& input) const;
  ForwardContext make_step_context(const ForwardInput& input) const;
  void fill_masks(ForwardContext& context, const ForwardInput& input, int64_t num_past) const;
  // After the final norm, [B, S or logits_to_keep, H].
  at::Tensor hidden_states(const ForwardInput& input);
  void tie_head();
  void count_weights();

  DecoderConfig config_;
  nn::AttentionChoice attention_;
  nn::RotaryEmbedding rotary_;
  bool any_sliding_ = false;
  bool any_full_ = false;
  CausalLMInfo info_;
  std::shared_ptr<DecoderModel> model_;
  std::shared_ptr<nn::Linear> lm_head_;
  std::optional<layers::Slot<layers::CausalLoss>> loss_;  // of a trainable model
};

}  // namespace graft::models

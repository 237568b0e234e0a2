#include "graft/models/decoder.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/layers/packed_weight.h"
#include "graft/nn/contiguous_kv_cache.h"
#include "graft/nn/point_recorder.h"

namespace graft::models {

namespace {

void check_input(const ForwardInput& input, int64_t num_past) {
  if (!input.input_ids.defined() || input.input_ids.dim() != 2 ||
      input.input_ids.scalar_type() != at::kLong || input.input_ids.numel() == 0) {
    throw InvalidArgument(
        "models.forward", "input-ids",
        fmt::format("input_ids: expected int64 of shape [B, S], not empty, got {}",
                    input.input_ids.defined()
                        ? fmt::format("{} {}", toString(input.input_ids.scalar_type()),
                                      input.input_ids.sizes())
                        : "nothing"));
  }
  const at::Tensor& mask = input.attention_mask;
  const int64_t num_all = num_past + input.input_ids.size(1);
  if (mask.defined() &&
      (mask.dim() != 2 || mask.size(0) != input.input_ids.size(0) || mask.size(1) != num_all)) {
    throw InvalidArgument(
        "models.forward", "attention-mask",
        fmt::format("attention_mask: expected shape [{}, {}] (batch, past and new "
                    "tokens), got {}",
                    input.input_ids.size(0), num_all, mask.sizes()));
  }
}

// What a step that the device counts takes.
void check_step(const ForwardInput& input, int64_t batch_size) {
  const at::Tensor& ids = input.input_ids;
  if (!ids.defined() || ids.scalar_type() != at::kLong ||
      ids.sizes() != at::IntArrayRef({batch_size, 1})) {
    throw InvalidArgument(
        "models.forward", "input-ids",
        fmt::format("input_ids: expected int64 of shape [{}, 1] while tokens are counted on the "
                    "device, got {}",
                    batch_size,
                    ids.defined() ? fmt::format("{} {}", toString(ids.scalar_type()), ids.sizes())
                                  : "nothing"));
  }
  if (input.attention_mask.defined() || input.position_ids.defined()) {
    throw InvalidArgument("models.forward", "attention-mask",
                          "attention_mask and position_ids: expected none while tokens are counted "
                          "on the device, got one");
  }
  if (input.cache->length() >= input.cache->max_length()) {
    throw InvalidArgument(
        "nn.kv_cache", "full",
        fmt::format("cache: expected at most {} tokens, got one more", input.cache->max_length()),
        "make the cache with a larger max_length");
  }
}

}  // namespace

std::shared_ptr<nn::RmsNorm> DecoderLayer::add_norm(const std::string& name,
                                                    const DecoderConfig& config,
                                                    layers::RmsNormVariant variant) {
  return add<nn::RmsNorm>(name, config.hidden_size, config.rms_norm_eps, variant);
}

at::Tensor scaled_embedding(const at::Tensor& x, double scale) {
  const at::Tensor rounded = at::scalar_tensor(scale, at::TensorOptions().dtype(x.scalar_type()));
  return x * rounded.item();
}

at::Tensor soft_capped(const at::Tensor& x, double cap) {
  return cap > 0.0 ? at::tanh(x / cap) * cap : x;
}

nn::MlpOptions mlp_options(const DecoderConfig& config) {
  return {.hidden_size = config.hidden_size,
          .intermediate_size = config.intermediate_size,
          .activation = config.activation,
          .bias = config.mlp_bias};
}

DecoderModel::DecoderModel(const DecoderConfig& config, layers::RmsNormVariant norm_variant)
    : embed_tokens(add<nn::Embedding>("embed_tokens", config.vocab_size, config.hidden_size)),
      layers(add<nn::BlockList<DecoderLayer>>("layers")),
      norm(add<nn::RmsNorm>("norm", config.hidden_size, config.rms_norm_eps, norm_variant)) {}

DecoderForCausalLM::DecoderForCausalLM(const DecoderConfig& config,
                                       layers::RmsNormVariant norm_variant)
    : config_(config), rotary_(config.rope, config.head_dim) {
  for (const LayerType type : config.layer_types) {
    (type == LayerType::kSliding ? any_sliding_ : any_full_) = true;
  }
  adopt_attention(config.attention);
  model_ = register_module("model", std::make_shared<DecoderModel>(config, norm_variant));
  lm_head_ = register_module(
      "lm_head", std::make_shared<nn::Linear>(config.hidden_size, config.vocab_size, false));
  info_.model_type = config.model_type;
  info_.vocab_size = config.vocab_size;
  info_.num_layers = config.num_layers;
  const bool stretches = config.rope.type == nn::RopeType::kDynamic;
  info_.max_position_embeddings = stretches ? 0 : config.max_position_embeddings;
  info_.rope_switch_length = config.rope_switch_length;
  info_.eos_token_ids = config.eos_token_ids;
  info_.bos_token_id = config.bos_token_id;
  info_.pad_token_id = config.pad_token_id;
}

void DecoderForCausalLM::adopt_attention(nn::AttentionChoice choice) {
  if (choice.backend == nn::AttentionBackend::kSdpa && config_.attn_softcap > 0.0) {
    inform(fmt::format("[models.{}] attn_implementation: eager, as sdpa has no soft cap on scores",
                       config_.model_type));
    choice.backend = nn::AttentionBackend::kEager;
  }
  attention_ = std::move(choice);
}

nn::AttentionNeeds DecoderForCausalLM::attention_needs(at::ScalarType dtype, at::Device device,
                                                       bool training) const {
  return {.device = device.type(),
          .dtype = dtype,
          .head_dim = config_.head_dim,
          .window = any_sliding_ && config_.sliding_window > 0,
          .softcap = config_.attn_softcap > 0.0,
          .sinks = false,
          .training = training};
}

void DecoderForCausalLM::check_attention(at::ScalarType dtype, at::Device device,
                                         bool training) const {
  nn::check_attention(attention_, attention_needs(dtype, device, training));
}

void DecoderForCausalLM::set_attn_implementation(const std::string& name) {
  nn::AttentionChoice choice = nn::choose_attention(name, device());
  nn::check_attention(choice, attention_needs(dtype(), device(), is_training()));
  adopt_attention(std::move(choice));
}

std::vector<nn::AttentionCandidate> DecoderForCausalLM::attention_candidates(
    int64_t num_queries) const {
  // One slot stands for all: they are swapped alike.
  for (const auto& module : modules(/*include_self=*/false)) {
    if (const auto slot =
            std::dynamic_pointer_cast<layers::ContractSlot<layers::Attention>>(module)) {
      return nn::attention_candidates(*slot, attention_,
                                      {.device = device(),
                                       .dtype = dtype(),
                                       .num_queries = num_queries,
                                       .head_dim = config_.head_dim});
    }
  }
  return {};
}

void DecoderForCausalLM::finish_loading(const std::string& folder, const std::string& weights_file,
                                        const std::string& config_json, bool trainable) {
  if (tied()) {
    tie_head();
  }
  model_->embed_tokens->set_packed_dtype(dtype());
  info_.folder = folder;
  info_.weights_file = weights_file;
  info_.config_json = config_json;
  count_weights();
  if (trainable) {
    loss_.emplace(*this, layers::CausalLoss::Spec{}, "loss");
  }
}

void DecoderForCausalLM::tie_head() {
  if (const auto& packed = model_->embed_tokens->packed_weight()) {
    lm_head_->assign_packed("weight", packed);
  } else {
    lm_head_->assign_weight("weight", model_->embed_tokens->weight);
  }
}

// A tied head counts once.
void DecoderForCausalLM::count_weights() {
  std::set<const void*> seen;
  info_.num_parameters = 0;
  for (const at::Tensor& weight : parameters()) {
    if (seen.insert(weight.unsafeGetTensorImpl()).second) {
      info_.num_parameters += weight.numel();
    }
  }
  for (const auto& [key, weight] : nn::list_packed_weights(*this)) {
    if (seen.insert(weight.get()).second) {
      info_.num_parameters += weight->rows() * weight->columns();
    }
  }
}

std::unique_ptr<nn::KvCache> DecoderForCausalLM::make_cache(int64_t batch_size,
                                                            int64_t max_length) const {
  if (max_length <= 0) {
    return std::make_unique<nn::DynamicKvCache>(config_.num_layers);
  }
  const nn::KvCacheShape shape{config_.num_layers, batch_size, config_.num_kv_heads,
                               config_.head_dim};
  return std::make_unique<nn::StaticKvCache>(shape, max_length,
                                             at::TensorOptions().dtype(dtype()).device(device()));
}

std::string DecoderForCausalLM::device_steps_refusal() const {
  if (attention_.backend != nn::AttentionBackend::kSdpa) {
    return "only sdpa attention reads lengths from the device";
  }
  return rotary_.needs_length() ? "the rotary frequencies change with the length" : "";
}

void CausalLM::count_on_device(nn::KvCache&, const at::Tensor&) const {
  throw InvalidArgument("models.device_steps", "model", device_steps_refusal());
}

void DecoderForCausalLM::count_on_device(nn::KvCache& cache,
                                         const at::Tensor& attention_mask) const {
  auto* fixed = dynamic_cast<nn::StaticKvCache*>(&cache);
  if (const std::string refusal = device_steps_refusal(); !refusal.empty()) {
    CausalLM::count_on_device(cache, attention_mask);
  }
  if (fixed == nullptr || fixed->length() == 0) {
    throw InvalidArgument("models.device_steps", "cache",
                          fmt::format("cache: expected a static one that holds a prompt, got {}",
                                      fixed == nullptr ? "a growing one" : "an empty one"));
  }
  ForwardContext context;
  const int64_t places = fixed->max_length();
  const auto options = at::TensorOptions().dtype(at::kLong).device(device());
  fill_rotary(context, at::arange(places, options).unsqueeze(0), places);
  fixed->count_on_device(attention_mask, context.rotary, context.sliding_rotary);
}

at::Tensor DecoderForCausalLM::embed(const at::Tensor& input_ids) const {
  return model_->embed_tokens->forward(input_ids);
}

void DecoderForCausalLM::fill_rotary(ForwardContext& context, const at::Tensor& position_ids,
                                     int64_t length) const {
  context.rotary = rotary_.tables(position_ids, length, dtype());
}

void DecoderForCausalLM::fill_masks(ForwardContext& context, const ForwardInput& input,
                                    int64_t num_past) const {
  nn::MaskRequest request{.num_new = input.input_ids.size(1),
                          .num_past = num_past,
                          .padding = {},
                          .dtype = dtype(),
                          .device = input.input_ids.device(),
                          .backend = attention_.backend,
                          .kernel = attention_.kernel.get()};
  if (input.attention_mask.defined()) {
    const at::Tensor attended = input.attention_mask.to(request.device, at::kBool);
    if (!attended.all().item<bool>()) {
      request.padding = attended;
    }
  }
  if (any_full_) {
    context.full_mask = nn::build_mask(request, 0);
  }
  if (any_sliding_) {
    context.sliding_mask = nn::build_mask(request, config_.sliding_window);
  }
}

ForwardContext DecoderForCausalLM::make_step_context(const ForwardInput& input) const {
  const nn::DeviceSteps& steps = *input.cache->device_steps();
  // The attention may have been changed since the cache began to count.
  if (const std::string refusal = device_steps_refusal(); !refusal.empty()) {
    throw InvalidArgument("models.device_steps", "model", refusal);
  }
  check_step(input, steps.counts.size(1));
  ForwardContext context;
  context.cache = input.cache;
  context.steps = &steps;
  context.rotary = steps.rotary;
  context.sliding_rotary = steps.sliding_rotary;
  at::Tensor counts = steps.counts;
  counts.add_(1);
  context.full_mask.lengths = steps.place.lengths;
  context.full_mask.additive = steps.mask;
  context.sliding_mask = context.full_mask;
  context.sliding_mask.window = config_.sliding_window;
  return context;
}

ForwardContext DecoderForCausalLM::make_context(const ForwardInput& input) const {
  if (input.cache != nullptr && input.cache->device_steps() != nullptr) {
    return make_step_context(input);
  }
  const int64_t num_past = input.cache != nullptr ? input.cache->length() : 0;
  check_input(input, num_past);
  ForwardContext context;
  context.cache = input.cache;
  fill_masks(context, input, num_past);
  int64_t length = num_past + input.input_ids.size(1);
  at::Tensor positions = input.position_ids;
  if (!positions.defined()) {
    positions = at::arange(num_past, length, input.input_ids.options()).unsqueeze(0);
  } else if (rotary_.needs_length()) {
    length = positions.max().item<int64_t>() + 1;
  }
  fill_rotary(context, positions, length);
  return context;
}

at::Tensor DecoderForCausalLM::hidden_states(const ForwardInput& input) {
  ForwardContext context = make_context(input);
  nn::ResidualStream stream(embed(input.input_ids));
  nn::record_point("", "embed_tokens", stream.value());
  const bool recording = nn::PointRecorder::current() != nullptr;
  const size_t num_layers = model_->layers->items().size();
  for (size_t i = 0; i < num_layers; ++i) {
    // Nothing reads the other positions of the last layer but a recorder.
    context.last_query_only = i + 1 == num_layers && input.logits_to_keep == 1 && !recording;
    model_->layers->items()[i]->forward(stream, context);
    if (recording) {
      nn::record_point(fmt::format("layers.{}", i), "", stream.value());
    }
  }
  stream.keep_last(input.logits_to_keep);
  const at::Tensor hidden = stream.normalized(*model_->norm);
  nn::record_point("", "norm", hidden);
  return hidden;
}

at::Tensor DecoderForCausalLM::forward(const ForwardInput& input) {
  at::Tensor logits = soft_capped(lm_head_->forward(hidden_states(input)), logit_softcap());
  nn::record_point("", "logits", logits);
  if (input.cache != nullptr) {
    input.cache->advance(input.input_ids.size(1));
  }
  return logits;
}

}  // namespace graft::models

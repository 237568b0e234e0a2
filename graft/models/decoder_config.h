// The part of a config that all decoder families share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graft/layers/contract.h"
#include "graft/models/config_reader.h"
#include "graft/nn/attention.h"
#include "graft/nn/rotary.h"

namespace graft::models {

// Beyond every published model, and small enough that products of two stay far from overflow.
inline constexpr IntRange kWidthRange{1, int64_t{1} << 20};
inline constexpr IntRange kInnerWidthRange{1, int64_t{1} << 22};
inline constexpr IntRange kLayersRange{1, 1024};
inline constexpr IntRange kHeadsRange{1, 4096};
inline constexpr IntRange kHeadDimRange{2, 8192};
inline constexpr IntRange kPositionsRange{1, int64_t{1} << 31};

enum class LayerType { kFull, kSliding };

// What a family's config class assumes for keys that a file leaves out.
struct DecoderDefaults {
  int64_t max_position_embeddings = 2048;
  int64_t num_kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;      // 0: hidden_size / num_heads
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;
  std::string activation_key = "hidden_act";
  std::string activation = "silu";
};

struct DecoderConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  layers::ActivationKind activation = layers::ActivationKind::kSilu;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  nn::RopeParameters rope;
  int64_t rope_switch_length = 0;      // CausalLMInfo::rope_switch_length
  int64_t sliding_window = 0;          // 0: none
  std::vector<LayerType> layer_types;  // one per layer
  std::vector<int64_t> eos_token_ids;
  int64_t bos_token_id = -1;
  int64_t pad_token_id = -1;
  std::optional<at::ScalarType> dtype;  // the checkpoint's, where the file says
  double attn_softcap = 0.0;            // of attention scores; 0: off
  nn::AttentionChoice attention;

  // Options of this model's attention with the usual scale 1 / sqrt(head_dim).
  nn::AttentionOptions attention_options() const;
};

// Reads and checks the shared part; all layers full attention.
// Throws   FormatError naming the key, its range and its value.
DecoderConfig read_decoder_config(const ConfigReader& reader, const DecoderDefaults& defaults);

// Reads `layer_types` where present, else asks `is_sliding(layer_idx)`.
template <typename Predicate>
std::vector<LayerType> read_layer_types(const ConfigReader& reader, int64_t num_layers,
                                        Predicate&& is_sliding);

// Reads one set of rope parameters. `own` may be nested in the config (one per layer type).
nn::RopeParameters read_rope(const ConfigReader& config, const ConfigReader& own,
                             const DecoderConfig& decoder, double default_theta);

// The object that holds rope parameters: `rope_scaling` where set, else `rope_parameters`.
ConfigReader rope_object(const ConfigReader& reader);

// `sliding_window`: 0 for a null, `fallback` where the key is left out.
int64_t read_sliding_window(const ConfigReader& reader, int64_t fallback);

// Qwen's rule: a window only with `use_sliding_window`, from layer `max_window_layers` upwards.
void read_upper_window(const ConfigReader& reader, DecoderConfig& config);

// A soft cap: 0 (off) for a null, `fallback` where the key is left out.
double read_softcap(const ConfigReader& reader, const std::string& key, double fallback);

// Throws   IncompatibleError where a config asks for attention in both directions.
void refuse_bidirectional(const ConfigReader& reader);

// Reads `dtype` or `torch_dtype`; nullopt when absent or `auto`.
std::optional<at::ScalarType> read_dtype(const ConfigReader& reader);

namespace detail {
LayerType parse_layer_type(const ConfigReader& reader, const std::string& name);
}

template <typename Predicate>
std::vector<LayerType> read_layer_types(const ConfigReader& reader, int64_t num_layers,
                                        Predicate&& is_sliding) {
  std::vector<LayerType> types;
  if (reader.has("layer_types")) {
    for (const std::string& name : reader.texts("layer_types", static_cast<size_t>(num_layers))) {
      types.push_back(detail::parse_layer_type(reader, name));
    }
    return types;
  }
  for (int64_t i = 0; i < num_layers; ++i) {
    types.push_back(is_sliding(i) ? LayerType::kSliding : LayerType::kFull);
  }
  return types;
}

}  // namespace graft::models

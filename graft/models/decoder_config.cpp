#include "graft/models/decoder_config.h"

#include <array>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/nn/mlp.h"

namespace graft::models {

namespace {

constexpr IntRange kVocabRange{1, int64_t{1} << 24};
constexpr IntRange kTokenIdRange{-1, int64_t{1} << 24};
constexpr RealRange kEpsRange{0.0, 1.0};
constexpr RealRange kThetaRange{1e-3, 1e15};
constexpr RealRange kFactorRange{1e-6, 1e6};

// Keys by which a file could make its reader fetch and run foreign code.
constexpr std::array<std::string_view, 8> kIgnoredCodeKeys = {
    "auto_map",    "attn_implementation",           "_attn_implementation", "kernel_config",
    "use_kernels", "_attn_implementation_internal", "trust_remote_code",    "custom_pipelines"};

void warn_about_code(const ConfigReader& reader) {
  for (const std::string_view key : kIgnoredCodeKeys) {
    if (reader.has(std::string(key))) {
      warn(fmt::format(
          "[models.config] `{}`: `{}` is ignored: a config cannot choose code or kernels",
          reader.where(), key));
    }
  }
  if (reader.has("quantization_config")) {
    throw IncompatibleError(
        "models.config", "quantized",
        fmt::format("`{}`: quantization_config: expected none, got one; quantized "
                    "safetensors checkpoints are not supported",
                    reader.where()),
        "use the unquantized checkpoint or a GGUF file");
  }
}

void read_widths(const ConfigReader& reader, const DecoderDefaults& defaults,
                 DecoderConfig& config) {
  config.vocab_size = reader.integer("vocab_size", kVocabRange);
  config.hidden_size = reader.integer("hidden_size", kWidthRange);
  config.intermediate_size = reader.integer("intermediate_size", kInnerWidthRange);
  config.num_layers = reader.integer("num_hidden_layers", kLayersRange);
  config.num_heads = reader.integer("num_attention_heads", kHeadsRange);
  const int64_t kv_default = defaults.num_kv_heads > 0 ? defaults.num_kv_heads : config.num_heads;
  config.num_kv_heads = reader.integer("num_key_value_heads", kHeadsRange, kv_default);
  if (config.num_heads % config.num_kv_heads != 0) {
    reader.fail("num_key_value_heads",
                fmt::format("a divisor of num_attention_heads ({})", config.num_heads));
  }
  if (reader.has("head_dim") || defaults.head_dim > 0) {
    config.head_dim = reader.integer("head_dim", kHeadDimRange, defaults.head_dim);
  } else {
    if (config.hidden_size % config.num_heads != 0) {
      reader.fail("num_attention_heads",
                  fmt::format("a divisor of hidden_size ({})", config.hidden_size));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
}

void read_special_tokens(const ConfigReader& reader, DecoderConfig& config) {
  config.eos_token_ids = reader.integer_or_list("eos_token_id", kTokenIdRange);
  const auto bos = reader.integer_or_list("bos_token_id", kTokenIdRange);
  config.bos_token_id = bos.empty() ? -1 : bos.front();
  config.pad_token_id = reader.integer("pad_token_id", kTokenIdRange, -1);
}

void read_scaled_rope(const ConfigReader& own, int64_t head_dim, nn::RopeParameters& rope) {
  const double old_length = static_cast<double>(rope.original_max_position_embeddings);
  const double implied = static_cast<double>(rope.max_position_embeddings) / old_length;
  switch (rope.type) {
    case nn::RopeType::kDefault:
      return;
    case nn::RopeType::kLinear:
    case nn::RopeType::kDynamic:
      rope.factor = own.real("factor", kFactorRange);
      return;
    case nn::RopeType::kLlama3:
      rope.factor = own.real("factor", kFactorRange);
      rope.low_freq_factor = own.real("low_freq_factor", kFactorRange);
      rope.high_freq_factor = own.real("high_freq_factor", kFactorRange);
      if (rope.high_freq_factor <= rope.low_freq_factor) {
        own.fail("high_freq_factor", "a number above low_freq_factor");
      }
      return;
    case nn::RopeType::kYarn:
      rope.factor = own.real("factor", kFactorRange, implied);
      rope.attention_factor = own.real("attention_factor", {0.0, 1e6}, 0.0);
      rope.beta_fast = own.real("beta_fast", kFactorRange, 32.0);
      rope.beta_slow = own.real("beta_slow", kFactorRange, 1.0);
      rope.mscale = own.real("mscale", {0.0, 1e6}, 0.0);
      rope.mscale_all_dim = own.real("mscale_all_dim", {0.0, 1e6}, 0.0);
      rope.truncate = own.boolean("truncate", true);
      return;
    case nn::RopeType::kLongRope: {
      const auto rotary_dim =
          static_cast<int64_t>(static_cast<double>(head_dim) * rope.partial_rotary_factor);
      const auto count = static_cast<size_t>(rotary_dim / 2);
      rope.factor = own.real("factor", kFactorRange, implied);
      rope.attention_factor = own.real("attention_factor", {0.0, 1e6}, 0.0);
      rope.short_factor = own.reals("short_factor", kFactorRange, count);
      rope.long_factor = own.reals("long_factor", kFactorRange, count);
      return;
    }
  }
}

}  // namespace

namespace detail {

LayerType parse_layer_type(const ConfigReader& reader, const std::string& name) {
  if (name == "full_attention") {
    return LayerType::kFull;
  }
  if (name == "sliding_attention") {
    return LayerType::kSliding;
  }
  reader.fail("layer_types", "`full_attention` and `sliding_attention` alone");
}

}  // namespace detail

nn::AttentionOptions DecoderConfig::attention_options() const {
  return {.num_heads = num_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .scale = 1.0 / std::sqrt(static_cast<double>(head_dim)),
          .softcap = 0.0};
}

std::optional<at::ScalarType> read_dtype(const ConfigReader& reader) {
  const std::string key = reader.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = reader.text(key, "auto");
  if (name == "auto") {
    return std::nullopt;
  }
  if (name == "float32") {
    return at::kFloat;
  }
  if (name == "bfloat16") {
    return at::kBFloat16;
  }
  if (name == "float16") {
    return at::kHalf;
  }
  if (name == "float64") {
    return at::kDouble;
  }
  reader.fail(key, "one of `float32`, `bfloat16`, `float16`, `float64`, `auto`");
}

int64_t read_sliding_window(const ConfigReader& reader, int64_t fallback) {
  if (reader.raw().contains("sliding_window") && !reader.has("sliding_window")) {
    return 0;
  }
  return reader.integer("sliding_window", kPositionsRange, fallback);
}

void read_upper_window(const ConfigReader& reader, DecoderConfig& config) {
  config.sliding_window =
      reader.boolean("use_sliding_window", false) ? read_sliding_window(reader, 4096) : 0;
  const int64_t first = reader.integer("max_window_layers", {0, 1 << 20}, 28);
  config.layer_types = read_layer_types(reader, config.num_layers, [&](int64_t i) {
    return config.sliding_window > 0 && i >= first;
  });
}

double read_softcap(const ConfigReader& reader, const std::string& key, double fallback) {
  if (reader.raw().contains(key) && !reader.has(key)) {
    return 0.0;
  }
  return reader.real(key, {0.0, 1e6}, fallback);
}

void refuse_bidirectional(const ConfigReader& reader) {
  if (reader.boolean("use_bidirectional_attention", false)) {
    throw IncompatibleError("models.config", "bidirectional",
                            fmt::format("`{}`: use_bidirectional_attention: expected false for a "
                                        "causal language model, got true",
                                        reader.where()));
  }
}

ConfigReader rope_object(const ConfigReader& reader) {
  return reader.has("rope_scaling") ? reader.object("rope_scaling")
                                    : reader.object("rope_parameters");
}

nn::RopeParameters read_rope(const ConfigReader& config, const ConfigReader& own,
                             const DecoderConfig& decoder, double default_theta) {
  nn::RopeParameters rope;
  rope.type = own.parsed("rope_type", own.text("type", "default"), nn::parse_rope_type);
  if (rope.type == nn::RopeType::kYarn && decoder.model_type == "phi3") {
    rope.type = nn::RopeType::kLongRope;  // what early phi3 configs meant by the name
  }
  const double outer_theta = config.real("rope_theta", kThetaRange, default_theta);
  rope.theta = own.real("rope_theta", kThetaRange, outer_theta);
  const RealRange fraction{1e-6, 1.0};
  const double outer_fraction = config.real("partial_rotary_factor", fraction, 1.0);
  rope.partial_rotary_factor = own.real("partial_rotary_factor", fraction, outer_fraction);
  const auto rotary_dim =
      static_cast<int64_t>(static_cast<double>(decoder.head_dim) * rope.partial_rotary_factor);
  // The dynamic type stretches by a power of dim / (dim - 2).
  const int64_t least = rope.type == nn::RopeType::kDynamic ? 4 : 2;
  if (rotary_dim < least || rotary_dim % 2 != 0) {
    config.fail(config.has("head_dim") ? "head_dim" : "partial_rotary_factor",
                fmt::format("an even number of rotated dimensions, {} or more (here {})", least,
                            rotary_dim));
  }
  rope.max_position_embeddings = decoder.max_position_embeddings;
  const std::string original = "original_max_position_embeddings";
  rope.original_max_position_embeddings =
      config.has(original)
          ? config.integer(original, kPositionsRange)
          : own.integer(original, kPositionsRange, decoder.max_position_embeddings);
  read_scaled_rope(own, decoder.head_dim, rope);
  return rope;
}

DecoderConfig read_decoder_config(const ConfigReader& reader, const DecoderDefaults& defaults) {
  warn_about_code(reader);
  DecoderConfig config;
  config.model_type = reader.text("model_type", "");
  read_widths(reader, defaults, config);
  config.max_position_embeddings =
      reader.integer("max_position_embeddings", kPositionsRange, defaults.max_position_embeddings);
  config.rms_norm_eps = reader.real("rms_norm_eps", kEpsRange, defaults.rms_norm_eps);
  config.activation =
      reader.parsed(defaults.activation_key, defaults.activation, nn::parse_activation);
  config.attention_bias = reader.boolean("attention_bias", false);
  config.mlp_bias = reader.boolean("mlp_bias", false);
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", defaults.tie_word_embeddings);
  config.rope = read_rope(reader, rope_object(reader), config, defaults.rope_theta);
  config.layer_types.assign(static_cast<size_t>(config.num_layers), LayerType::kFull);
  read_special_tokens(reader, config);
  config.dtype = read_dtype(reader);
  return config;
}

}  // namespace graft::models

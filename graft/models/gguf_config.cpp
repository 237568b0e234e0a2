#include "graft/models/gguf_config.h"

#include <string>

#include <fmt/format.h>

#include "graft/models/decoder_config.h"

namespace graft::models {

namespace {

using Json = nlohmann::json;

constexpr RealRange kPositive{1e-9, 1e15};

// Metadata under `<architecture>.`.
class ArchReader {
 public:
  ArchReader(const GgufArchitecture& architecture, const ConfigReader& metadata)
      : prefix_(std::string(architecture.name) + "."), metadata_(metadata) {}

  bool has(const std::string& name) const { return metadata_.has(prefix_ + name); }
  int64_t integer(const std::string& name, IntRange range) const {
    return metadata_.integer(prefix_ + name, range);
  }
  int64_t integer(const std::string& name, IntRange range, int64_t fallback) const {
    return metadata_.integer(prefix_ + name, range, fallback);
  }
  [[noreturn]] void fail(const std::string& name, const std::string& expected) const {
    metadata_.fail(prefix_ + name, expected);
  }
  double real(const std::string& name) const { return metadata_.real(prefix_ + name, kPositive); }
  std::string text(const std::string& name) const { return metadata_.text(prefix_ + name, ""); }

 private:
  std::string prefix_;
  const ConfigReader& metadata_;
};

Json rope_parameters(const ArchReader& arch, const GgufTensorFacts& facts) {
  Json rope = {{"rope_type", "default"}};
  if (arch.has("rope.freq_base")) {
    rope["rope_theta"] = arch.real("rope.freq_base");
  }
  if (!facts.rope_freqs.empty()) {
    // Llama 3's scaling, stored as the divisor of each frequency: long rope with one set of
    // factors.
    rope["rope_type"] = "longrope";
    rope["short_factor"] = facts.rope_freqs;
    rope["long_factor"] = facts.rope_freqs;
    rope["attention_factor"] = 1.0;
    return rope;
  }
  if (!facts.rope_factors_long.empty() && !facts.rope_factors_short.empty()) {
    rope["rope_type"] = "longrope";
    rope["short_factor"] = facts.rope_factors_short;
    rope["long_factor"] = facts.rope_factors_long;
    if (arch.has("rope.scaling.attn_factor")) {
      rope["attention_factor"] = arch.real("rope.scaling.attn_factor");
    }
  } else if (const std::string type = arch.text("rope.scaling.type");
             type == "linear" || type == "yarn") {
    rope["rope_type"] = type;
    rope["factor"] = arch.real("rope.scaling.factor");
  }
  if (arch.has("rope.scaling.original_context_length")) {
    rope["original_max_position_embeddings"] =
        arch.integer("rope.scaling.original_context_length", kPositionsRange);
  }
  return rope;
}

// gemma2's and gemma3's largest models scale queries by hidden / heads, the others by head_dim; the
// file does not say, so the layer count tells, as in llama.cpp.
int64_t query_scalar(const GgufArchitecture& architecture, const Json& config) {
  const int64_t num_layers = config.at("num_hidden_layers").get<int64_t>();
  const bool largest = num_layers == (architecture.name == "gemma2" ? 46 : 62);
  return largest ? config.at("hidden_size").get<int64_t>() /
                       config.at("num_attention_heads").get<int64_t>()
                 : config.at("head_dim").get<int64_t>();
}

void add_gemma(const GgufArchitecture& architecture, const ArchReader& arch, Json& config) {
  config["hidden_activation"] = "gelu_pytorch_tanh";
  config["query_pre_attn_scalar"] = query_scalar(architecture, config);
  for (const char* cap : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    config[cap] = arch.has(cap) ? Json(arch.real(cap)) : Json(nullptr);
  }
  if (architecture.name == "gemma3") {
    const Json full = config.at("rope_parameters");
    config["rope_parameters"] = {
        {"full_attention", full},
        {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}};
  }
}

void add_heads(const ArchReader& arch, Json& config) {
  const int64_t hidden = config.at("hidden_size").get<int64_t>();
  const int64_t heads = config.at("num_attention_heads").get<int64_t>();
  const int64_t kv_heads = arch.integer("attention.head_count_kv", kHeadsRange, heads);
  if (heads % kv_heads != 0) {
    arch.fail("attention.head_count_kv", fmt::format("a divisor of head_count ({})", heads));
  }
  const bool stored = arch.has("attention.key_length");
  if (!stored && hidden % heads != 0) {
    arch.fail("attention.head_count", fmt::format("a divisor of embedding_length ({})", hidden));
  }
  const int64_t head_dim =
      stored ? arch.integer("attention.key_length", kHeadDimRange) : hidden / heads;
  const int64_t rotated = arch.integer("rope.dimension_count", kHeadDimRange, head_dim);
  if (rotated > head_dim || rotated % 2 != 0) {
    const std::string key = arch.has("rope.dimension_count") ? "rope.dimension_count"
                            : stored                         ? "attention.key_length"
                                                             : "attention.head_count";
    arch.fail(key, fmt::format("an even number of rotated dimensions of each head's {}", head_dim));
  }
  config["num_key_value_heads"] = kv_heads;
  config["head_dim"] = head_dim;
  if (arch.has("rope.dimension_count")) {
    config["partial_rotary_factor"] = static_cast<double>(rotated) / static_cast<double>(head_dim);
  }
}

void add_special_tokens(const ConfigReader& metadata, Json& config) {
  const IntRange ids{0, int64_t{1} << 24};
  const auto copy = [&](const char* from, const char* to) {
    const std::string key = std::string("tokenizer.ggml.") + from;
    if (metadata.has(key)) {
      config[to] = metadata.integer(key, ids);
    }
  };
  copy("bos_token_id", "bos_token_id");
  copy("eos_token_id", "eos_token_id");
  copy("padding_token_id", "pad_token_id");
}

}  // namespace

Json gguf_config(const GgufArchitecture& architecture, const ConfigReader& metadata,
                 const GgufTensorFacts& facts) {
  const ArchReader arch(architecture, metadata);
  Json config = {{"model_type", architecture.model_type},
                 {"vocab_size", facts.vocab_size},
                 {"max_position_embeddings", arch.integer("context_length", kPositionsRange)},
                 {"hidden_size", arch.integer("embedding_length", kWidthRange)},
                 {"intermediate_size", arch.integer("feed_forward_length", kInnerWidthRange)},
                 {"num_hidden_layers", arch.integer("block_count", kLayersRange)},
                 {"num_attention_heads", arch.integer("attention.head_count", kHeadsRange)},
                 {"rms_norm_eps", arch.real("attention.layer_norm_rms_epsilon")},
                 {"tie_word_embeddings", !facts.has_output}};
  add_heads(arch, config);
  config["sliding_window"] = arch.has("attention.sliding_window")
                                 ? Json(arch.integer("attention.sliding_window", kPositionsRange))
                                 : Json(nullptr);
  config["rope_parameters"] = rope_parameters(arch, facts);
  if (architecture.shifted_norms) {
    add_gemma(architecture, arch, config);
  }
  add_special_tokens(metadata, config);
  return config;
}

}  // namespace graft::models

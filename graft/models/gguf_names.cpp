#include "graft/models/gguf_names.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::models {

namespace {

using NamePair = std::pair<std::string_view, std::string_view>;

constexpr std::array<GgufArchitecture, 8> kArchitectures = {{
    {.name = "llama", .model_type = "llama", .permuted_heads = true},
    {.name = "qwen2", .model_type = "qwen2"},
    {.name = "qwen3", .model_type = "qwen3"},
    {.name = "gemma2", .model_type = "gemma2", .shifted_norms = true, .four_norms = true},
    {.name = "gemma3", .model_type = "gemma3_text", .shifted_norms = true, .four_norms = true},
    {.name = "phi3", .model_type = "phi3", .fused = true},
    {.name = "olmo2", .model_type = "olmo2"},
    {.name = "smollm3", .model_type = "smollm3", .permuted_heads = true},
}};

constexpr std::array<NamePair, 3> kTopNames = {{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
}};

constexpr std::array<NamePair, 14> kLayerNames = {{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"post_attention_norm", "post_attention_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

template <size_t N>
std::string_view look_up(const std::array<NamePair, N>& names, std::string_view name) {
  const auto found = std::find_if(names.begin(), names.end(),
                                  [&](const NamePair& pair) { return pair.first == name; });
  return found == names.end() ? std::string_view() : found->second;
}

std::string_view layer_part(const GgufArchitecture& architecture, std::string_view stem) {
  if (architecture.four_norms && stem == "ffn_norm") {
    return "pre_feedforward_layernorm";
  }
  if (architecture.fused && stem == "ffn_up") {
    return "mlp.gate_up_proj";
  }
  return look_up(kLayerNames, stem);
}

}  // namespace

const GgufArchitecture& find_gguf_architecture(const std::string& name) {
  std::string known;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (architecture.name == name) {
      return architecture;
    }
    known += fmt::format("{}`{}`", known.empty() ? "" : ", ", architecture.name);
  }
  throw IncompatibleError(
      "models.gguf", "architecture",
      fmt::format("general.architecture: expected one of {}, got `{}`", known, name));
}

std::optional<GgufTarget> map_gguf_tensor(const GgufArchitecture& architecture,
                                          std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view kind = name.substr(dot + 1);  // weight or bias
  std::string_view stem = name.substr(0, dot);
  GgufTarget target;
  constexpr std::string_view kBlock = "blk.";
  if (stem.starts_with(kBlock)) {
    stem.remove_prefix(kBlock.size());
    const size_t end = stem.find('.');
    const std::string_view number = stem.substr(0, end);
    const bool is_number = !number.empty() && number.size() <= 6 &&
                           std::all_of(number.begin(), number.end(),
                                       [](unsigned char c) { return std::isdigit(c) != 0; });
    const std::string_view part = end == std::string_view::npos || !is_number
                                      ? std::string_view()
                                      : layer_part(architecture, stem.substr(end + 1));
    if (part.empty()) {
      return std::nullopt;
    }
    stem = stem.substr(end + 1);
    target.key = fmt::format("model.layers.{}.{}.{}", number, part, kind);
  } else {
    const std::string_view part = look_up(kTopNames, stem);
    if (part.empty()) {
      return std::nullopt;
    }
    target.key = fmt::format("{}.{}", part, kind);
  }
  if (architecture.permuted_heads && (stem == "attn_q" || stem == "attn_k")) {
    target.permuted = stem == "attn_q" ? GgufTarget::Heads::kQuery : GgufTarget::Heads::kKey;
  }
  target.shifted = architecture.shifted_norms && stem.ends_with("_norm");
  return target;
}

bool is_gguf_rope_tensor(std::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" ||
         name == "rope_factors_short.weight";
}

}  // namespace graft::models

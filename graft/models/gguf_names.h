// How llama.cpp names and stores the tensors of an architecture, and what that is in transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace graft::models {

// A GGUF architecture that graft reads.
struct GgufArchitecture {
  std::string_view name;        // `general.architecture`
  std::string_view model_type;  // of transformers
  // Rows of attn_q and attn_k are stored with the two halves of each head interleaved.
  bool permuted_heads = false;
  // Norm weights are stored as w + 1.
  bool shifted_norms = false;
  // ffn_norm is the norm before the feed-forward block of a layer with four norms.
  bool four_norms = false;
  // ffn_up holds gate and up, attn_qkv query, key and value.
  bool fused = false;
};

// Throws   IncompatibleError for an unknown architecture, listing the known ones.
const GgufArchitecture& find_gguf_architecture(const std::string& name);

// Where a stored tensor goes.
struct GgufTarget {
  std::string key;  // state_dict key
  enum class Heads { kNone, kQuery, kKey } permuted = Heads::kNone;
  bool shifted = false;  // subtract one
};

// nullopt for a tensor that is no weight of the model (rotary factors) or that is unknown.
std::optional<GgufTarget> map_gguf_tensor(const GgufArchitecture& architecture,
                                          std::string_view name);

// Whether a tensor holds rotary factors, which become part of the config.
bool is_gguf_rope_tensor(std::string_view name);

}  // namespace graft::models

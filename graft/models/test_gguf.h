// Writes .gguf files as llama.cpp's converter does, for the tests of this room.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "graft/io/gguf.h"
#include "graft/models/test_checkpoint.h"

namespace graft::models::testing {

// Writes GGUF version 3 with tensors in float32 or in blocks.
class GgufWriter {
 public:
  using Value = std::variant<uint32_t, float, std::string>;

  void metadata(const std::string& key, const Value& value) {
    text(header_, key);
    constexpr uint32_t kTypes[] = {4, 6, 8};  // uint32, float32, string
    number(header_, kTypes[value.index()]);
    std::visit(
        [this](const auto& item) {
          if constexpr (std::is_same_v<std::decay_t<decltype(item)>, std::string>) {
            text(header_, item);
          } else {
            number(header_, item);
          }
        },
        value);
    ++num_metadata_;
  }

  void tensor(const std::string& name, const at::Tensor& value) {
    const at::Tensor dense = value.contiguous();
    add(name, dense.sizes(), io::GgmlType::kF32,
        {static_cast<const char*>(dense.data_ptr()), dense.nbytes()});
  }

  // Rows of a multiple of 32 elements.
  void tensor_q8_0(const std::string& name, const at::Tensor& value) {
    add(name, value.sizes(), io::GgmlType::kQ8_0, q8_0_blocks(value));
  }

  void write(const std::filesystem::path& path) const {
    std::string all = "GGUF";
    number(all, uint32_t{3});
    number(all, num_tensors_);
    number(all, num_metadata_);
    all += header_ + infos_;
    all.resize((all.size() + 31) / 32 * 32);
    std::ofstream(path, std::ios::binary) << all << data_;
  }

 private:
  static std::string q8_0_blocks(const at::Tensor& value) {
    const at::Tensor blocks = value.contiguous().view({-1, 32});
    std::string bytes;
    for (int64_t i = 0; i < blocks.size(0); ++i) {
      const at::Tensor scale = (blocks[i].abs().max() / 127).to(at::kHalf);
      const at::Tensor codes = (blocks[i] / scale.to(at::kFloat)).round().to(at::kChar);
      bytes.append(static_cast<const char*>(scale.const_data_ptr()), 2);
      bytes.append(static_cast<const char*>(codes.const_data_ptr()), 32);
    }
    return bytes;
  }

  void add(const std::string& name, at::IntArrayRef shape, io::GgmlType type,
           std::string_view bytes) {
    text(infos_, name);
    number(infos_, static_cast<uint32_t>(shape.size()));
    for (auto size = shape.rbegin(); size != shape.rend(); ++size) {
      number(infos_, static_cast<uint64_t>(*size));
    }
    number(infos_, static_cast<uint32_t>(type));
    number(infos_, static_cast<uint64_t>(data_.size()));
    data_.append(bytes);
    data_.resize((data_.size() + 31) / 32 * 32);
    ++num_tensors_;
  }

  template <typename T>
  static void number(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void text(std::string& out, const std::string& value) {
    number(out, static_cast<uint64_t>(value.size()));
    out += value;
  }
  std::string header_, infos_, data_;
  uint64_t num_metadata_ = 0, num_tensors_ = 0;
};

// llama.cpp's name for a state_dict key; the table of its converter, read the other way round.
inline std::string llama_cpp_name(const std::string& architecture, std::string key) {
  const bool gemma = architecture.starts_with("gemma");
  const std::pair<std::string, std::string> table[] = {
      {"model.embed_tokens.", "token_embd."},
      {"model.norm.", "output_norm."},
      {"lm_head.", "output."},
      {"model.layers.", "blk."},
      {"self_attn.q_proj.", "attn_q."},
      {"self_attn.k_proj.", "attn_k."},
      {"self_attn.v_proj.", "attn_v."},
      {"self_attn.o_proj.", "attn_output."},
      {"self_attn.qkv_proj.", "attn_qkv."},
      {"self_attn.q_norm.", "attn_q_norm."},
      {"self_attn.k_norm.", "attn_k_norm."},
      {"mlp.gate_up_proj.", "ffn_up."},
      {"mlp.gate_proj.", "ffn_gate."},
      {"mlp.up_proj.", "ffn_up."},
      {"mlp.down_proj.", "ffn_down."},
      {"input_layernorm.", "attn_norm."},
      {"pre_feedforward_layernorm.", "ffn_norm."},
      {"post_feedforward_layernorm.", "post_ffw_norm."},
      {"post_attention_layernorm.",
       gemma || architecture == "olmo2" ? "post_attention_norm." : "ffn_norm."},
  };
  for (const auto& [from, to] : table) {
    if (const size_t at = key.find(from); at != std::string::npos) {
      key.replace(at, from.size(), to);
    }
  }
  return key;
}

// What llama.cpp's converter does to rows of queries and keys of llama-like models.
inline at::Tensor permuted(const at::Tensor& rows, int64_t num_heads) {
  return rows.view({num_heads, 2, rows.size(0) / num_heads / 2, -1})
      .transpose(1, 2)
      .reshape(rows.sizes());
}

// A model's weights (by their state_dict keys) and the metadata that its config gives. `packed`: matrices
// in blocks of Q8_0.
inline void write_gguf(const std::string& architecture, const nlohmann::json& config,
                       const Weights& weights, const std::filesystem::path& file,
                       bool packed = false) {
  GgufWriter writer;
  const std::string prefix = architecture + ".";
  writer.metadata("general.architecture", architecture);
  for (const auto& [key, from] : {std::pair{"context_length", "max_position_embeddings"},
                                  {"embedding_length", "hidden_size"},
                                  {"feed_forward_length", "intermediate_size"},
                                  {"block_count", "num_hidden_layers"},
                                  {"attention.head_count", "num_attention_heads"},
                                  {"attention.head_count_kv", "num_key_value_heads"},
                                  {"attention.key_length", "head_dim"},
                                  {"rope.dimension_count", "head_dim"}}) {
    writer.metadata(prefix + key, config.at(from).get<uint32_t>());
  }
  writer.metadata(prefix + "attention.layer_norm_rms_epsilon", 1e-5F);
  writer.metadata(prefix + "rope.freq_base", 5000.0F);
  if (config.at("sliding_window").is_number()) {
    writer.metadata(prefix + "attention.sliding_window",
                    config.at("sliding_window").get<uint32_t>());
  }
  if (architecture == "gemma2") {
    writer.metadata("gemma2.attn_logit_softcapping", 50.0F);
    writer.metadata("gemma2.final_logit_softcapping", 30.0F);
  }
  for (const auto& [key, value] : weights) {
    const std::string name = llama_cpp_name(architecture, key);
    at::Tensor stored = value;
    if (architecture == "llama" || architecture == "smollm3") {
      stored = name.find("attn_q.") != std::string::npos   ? permuted(value, 4)
               : name.find("attn_k.") != std::string::npos ? permuted(value, 2)
                                                           : value;
    }
    if (architecture.starts_with("gemma") && name.find("norm") != std::string::npos) {
      stored = value + 1.0;
    }
    if (packed && stored.dim() == 2) {
      writer.tensor_q8_0(name, stored);
    } else {
      writer.tensor(name, stored);
    }
  }
  writer.write(file);
}

}  // namespace graft::models::testing

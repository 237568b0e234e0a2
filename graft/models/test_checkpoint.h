// Tiny random checkpoints for the tests of this room.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "graft/io/safetensors.h"
#include "graft/models/decoder.h"
#include "graft/models/registry.h"
#include "graft/nn/block.h"

namespace graft::models::testing {

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "graft_models_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The smallest config that exercises grouped heads.
inline nlohmann::json tiny_config(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 32},       {"hidden_size", 32},
          {"intermediate_size", 64},  {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"head_dim", 8},          {"max_position_embeddings", 64},
          {"sliding_window", nullptr}};
}

using Weights = std::map<std::string, at::Tensor>;

// Random weights for every key that the config asks for, the tied head left out.
inline Weights random_weights(const nlohmann::json& config) {
  at::manual_seed(7);
  const ConfigReader reader(config, "test");
  const auto model = find_model_family(config.at("model_type").get<std::string>()).make(reader, {});
  Weights weights;
  for (const nn::WeightSlot& slot : nn::list_weights(*model)) {
    if (!model->tied() || slot.key != "lm_head.weight") {
      weights[slot.key] = at::randn(slot.shape) * 0.2;
    }
  }
  return weights;
}

inline void write_config(const std::filesystem::path& folder, const nlohmann::json& config) {
  std::ofstream(folder / "config.json") << config.dump();
}

inline void write_weights(const std::filesystem::path& folder, const Weights& weights) {
  std::vector<io::TensorView> views;
  for (const auto& [key, tensor] : weights) {
    const auto dtype = tensor.scalar_type() == at::kBFloat16 ? io::ScalarType::kBF16
                       : tensor.scalar_type() == at::kHalf   ? io::ScalarType::kF16
                                                             : io::ScalarType::kF32;
    views.push_back({key,
                     dtype,
                     tensor.sizes().vec(),
                     {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()}});
  }
  io::write_safetensors(folder / "model.safetensors", views);
}

}  // namespace graft::models::testing

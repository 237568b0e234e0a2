// Safetensors checkpoints and GGUF files as sources of a model's weights.
#pragma once

#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "graft/models/weights.h"

namespace graft::models {

// A folder with model.safetensors or its shards.
std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& folder);

// A GGUF file is a config and a checkpoint in one.
struct GgufModel {
  nlohmann::json config;  // what config.json would say
  std::unique_ptr<WeightSource> weights;
};

// Throws   IncompatibleError for an unknown architecture; FormatError for metadata out of range.
GgufModel open_gguf(const std::filesystem::path& file);

}  // namespace graft::models

// Where a model lies and what its files say, before there is a model: what loading and planning share.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include <c10/core/Device.h>
#include <nlohmann/json.hpp>

#include "graft/models/auto_model.h"
#include "graft/models/weights.h"

namespace graft::models {

// A folder, or one .gguf file.
struct ModelLocation {
  std::filesystem::path folder;
  std::filesystem::path gguf_file;  // empty: config.json and safetensors in the folder

  // That errors about the config name.
  std::filesystem::path config_file() const {
    return gguf_file.empty() ? folder / "config.json" : gguf_file;
  }
};

// Throws   NotFound and InvalidArgument as AutoModelForCausalLM::from_pretrained().
ModelLocation locate_model_files(const std::string& name_or_path, const LoadOptions& options);

struct ModelFiles {
  nlohmann::json config;  // as config.json has it
  std::unique_ptr<WeightSource> weights;
};

// Reads headers, no weights. Throws   FormatError, NotFound.
ModelFiles open_model_files(const ModelLocation& location);

// Whether matrices stay in packed blocks (WeightFormat).
// Throws   InvalidArgument `models.auto_model.packed` where they should and cannot.
bool stays_packed(const LoadOptions& options, const ModelLocation& location,
                  const at::Device& device);

}  // namespace graft::models

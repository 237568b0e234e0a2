// The model families that graft knows. Reading the list in registry.cpp is reading the support
// table.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "graft/models/config_reader.h"
#include "graft/nn/attention_kernel.h"

namespace graft::models {

class DecoderForCausalLM;

// What a caller chooses about a model, beyond what its config says.
struct ModelOptions {
  nn::AttentionChoice attention;
};

struct ModelFamily {
  std::string_view model_type;
  // Builds the modules without memory for the weights.
  std::shared_ptr<DecoderForCausalLM> (*make)(const ConfigReader& config,
                                              const ModelOptions& options);
};

std::span<const ModelFamily> model_families();

// Throws   IncompatibleError for an unknown model_type, listing the known ones.
const ModelFamily& find_model_family(const std::string& model_type);

}  // namespace graft::models

// Mistral: llama with an explicit head size and, where the config says so, a sliding window.
// Class and weight names as in transformers' modeling_mistral.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_mistral(const ConfigReader& reader,
                                                 const ModelOptions& options);

}  // namespace graft::models

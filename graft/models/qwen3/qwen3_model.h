// Qwen3: RMS norm on each head's query and key before the rotation; no biases by default.
// Class and weight names as in transformers' modeling_qwen3.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_qwen3(const ConfigReader& reader,
                                               const ModelOptions& options);

}  // namespace graft::models

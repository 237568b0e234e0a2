// Qwen2: llama with biases on query, key and value; the upper layers may use a sliding window.
// Class and weight names as in transformers' modeling_qwen2.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_qwen2(const ConfigReader& reader,
                                               const ModelOptions& options);

}  // namespace graft::models

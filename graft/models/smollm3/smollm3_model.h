// SmolLM3: llama whose every fourth layer has no rotary embedding.
// Class and weight names as in transformers' modeling_smollm3.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_smollm3(const ConfigReader& reader,
                                                 const ModelOptions& options);

}  // namespace graft::models

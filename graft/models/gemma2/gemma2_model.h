// Gemma2: four norms a layer, zero-centred; soft-capped scores and logits; every other layer
// slides. Class and weight names as in transformers' modeling_gemma2.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_gemma2(const ConfigReader& reader,
                                                const ModelOptions& options);

}  // namespace graft::models

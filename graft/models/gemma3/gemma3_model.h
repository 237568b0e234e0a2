// Gemma3 (text): gemma2's norms, query and key norms, five sliding layers to one full layer, each
// kind with rotary tables of its own. Class and weight names as in transformers'
// modeling_gemma3.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_gemma3(const ConfigReader& reader,
                                                const ModelOptions& options);

}  // namespace graft::models

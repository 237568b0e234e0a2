// Olmo2: norms after attention and MLP alone; query and key normalised over their full width;
// rotary tables in float32. Class and weight names as in transformers' modeling_olmo2.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_olmo2(const ConfigReader& reader,
                                               const ModelOptions& options);

}  // namespace graft::models

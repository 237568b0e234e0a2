// Phi3: fused query-key-value and gate-up projections; long rope; part of a head may stay
// unrotated. Class and weight names as in transformers' modeling_phi3.py.
#pragma once

#include <memory>

#include "graft/models/decoder.h"
#include "graft/models/registry.h"

namespace graft::models {

std::shared_ptr<DecoderForCausalLM> make_phi3(const ConfigReader& reader,
                                              const ModelOptions& options);

}  // namespace graft::models

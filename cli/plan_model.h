// The modules of a model that nothing is computed with: `graft plan` needs its layers, not its
// weights.
#pragma once

#include <memory>
#include <string>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include "graft/layers/mode.h"
#include "graft/models/causal_lm.h"

#include "cli/options.h"

namespace graft::cli {

struct PlannedModel {
  std::shared_ptr<models::CausalLM> model;  // its weights have shapes and no memory
  at::Device device;
  at::ScalarType dtype;
};

// Builds the modules that the options name, from config.json or a GGUF file's header alone. A model
// of the Hub that is not in the cache costs three small requests; its config.json is kept nowhere.
//
// mode     that is planned for: for inference the matrices of a GGUF file stay packed where loading it would keep them
//          so, and are in their places, their blocks unread
// Throws   NotFound `cli.plan.config` for a repository without config.json; as load_model() and
//          hub::Client.
PlannedModel plan_model(const ModelOptions& options, layers::Mode mode,
                        const CommonOptions& common);

}  // namespace graft::cli

#include "graft/models/registry.h"

#include <array>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/models/decoder.h"
#include "graft/models/gemma2/gemma2_model.h"
#include "graft/models/gemma3/gemma3_model.h"
#include "graft/models/llama/llama_model.h"
#include "graft/models/mistral/mistral_model.h"
#include "graft/models/olmo2/olmo2_model.h"
#include "graft/models/phi3/phi3_model.h"
#include "graft/models/qwen2/qwen2_model.h"
#include "graft/models/qwen3/qwen3_model.h"
#include "graft/models/smollm3/smollm3_model.h"

namespace graft::models {

namespace {

constexpr std::array kFamilies = {
    ModelFamily{"llama", make_llama},     ModelFamily{"mistral", make_mistral},
    ModelFamily{"qwen2", make_qwen2},     ModelFamily{"qwen3", make_qwen3},
    ModelFamily{"gemma2", make_gemma2},   ModelFamily{"gemma3_text", make_gemma3},
    ModelFamily{"phi3", make_phi3},       ModelFamily{"olmo2", make_olmo2},
    ModelFamily{"smollm3", make_smollm3},
};

}  // namespace

std::span<const ModelFamily> model_families() { return kFamilies; }

const ModelFamily& find_model_family(const std::string& model_type) {
  std::string known;
  for (const ModelFamily& family : kFamilies) {
    if (family.model_type == model_type) {
      return family;
    }
    known += fmt::format("{}`{}`", known.empty() ? "" : ", ", family.model_type);
  }
  throw IncompatibleError(
      "models.auto_model", "model-type",
      fmt::format("model_type: expected one of {}, got `{}`", known, model_type));
}

}  // namespace graft::models

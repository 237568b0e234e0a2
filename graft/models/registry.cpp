#include "graft/models/registry.h"

#include <array>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/models/decoder.h"
#include "graft/models/llama/llama_model.h"

namespace graft::models {

namespace {

constexpr std::array kFamilies = {
    ModelFamily{"llama", make_llama},
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

#include "cli/load_model.h"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"
#include "graft/layers/kernel_config.h"
#include "graft/tensor/device.h"

#include "cli/model_path.h"
#include "cli/output.h"

namespace graft::cli {

namespace fs = std::filesystem;

std::optional<layers::KernelConfig> kernel_config(const ModelOptions& options) {
  const std::string& text = options.kernel_config;
  if (text.empty()) {
    return std::nullopt;
  }
  if (fs::is_regular_file(text)) {
    std::ifstream in(text);
    return layers::KernelConfig::from_json(std::string(std::istreambuf_iterator<char>(in), {}));
  }
  return layers::KernelConfig::from_json(text);
}

std::shared_ptr<models::CausalLM> load_model(const ModelOptions& options) {
  const std::string model = resolve_model(options.model);
  models::LoadOptions load;
  load.use_kernels = options.use_kernels;
  load.kernel_config = kernel_config(options);
  load.device = tensor::parse_device(options.device);
  load.dtype = tensor::parse_dtype(options.dtype);
  load.attn_implementation = options.attn_implementation;
  load.gguf_file = options.gguf_file;
  load.revision = options.revision;
  return models::AutoModelForCausalLM::from_pretrained(model, load);
}

std::vector<int64_t> parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    int64_t id = 0;
    const auto [last, status] = std::from_chars(text.data() + start, text.data() + end, id);
    if (status != std::errc() || last != text.data() + end) {
      throw InvalidArgument("cli", "ids",
                            fmt::format("ids: expected numbers with commas, got `{}`",
                                        text.substr(start, end - start)));
    }
    ids.push_back(id);
    start = end + 1;
  }
  return ids;
}

fs::path model_folder(const ModelOptions& options) {
  const fs::path model = resolve_model(options.model);
  if (is_gguf_file(model)) {
    return model;
  }
  if (fs::is_directory(model)) {
    return options.gguf_file.empty() ? model : model / options.gguf_file;
  }
  if (hub::is_repo_id(model.string())) {
    if (const auto snapshot = hub::find_snapshot(hub::cache_folder(), hub::RepoType::kModel,
                                                 model.string(), options.revision)) {
      return options.gguf_file.empty() ? snapshot->folder : snapshot->folder / options.gguf_file;
    }
  }
  throw NotFound("cli", "model",
                 fmt::format("`{}`: expected a folder, a .gguf file or a cached Hub id, got none",
                             model.string()),
                 fmt::format("run `graft download {}`", model.string()));
}

}  // namespace graft::cli

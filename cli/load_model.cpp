#include "cli/load_model.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <string_view>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/layers/kernel_config.h"
#include "graft/tensor/device.h"

#include "cli/input.h"
#include "cli/model_path.h"
#include "cli/progress.h"

namespace graft::cli {

std::optional<layers::KernelConfig> kernel_config(const ModelOptions& options) {
  const std::string& text = options.kernel_config;
  if (text.empty()) {
    return std::nullopt;
  }
  const bool is_json = text.find_first_not_of(" \t\r\n") == text.find('{');
  return layers::KernelConfig::from_json(is_json ? text : read_text(text, "--kernel-config"));
}

models::LoadOptions load_options(const ModelOptions& options) {
  models::LoadOptions load;
  load.use_kernels = options.use_kernels;
  load.kernel_config = kernel_config(options);
  load.device_map = options.device;
  load.dtype = tensor::parse_dtype(options.dtype);
  load.weights = models::parse_weight_format(options.weights);
  load.attn_implementation = options.attn_implementation;
  load.gguf_file = options.gguf_file;
  load.revision = options.revision;
  return load;
}

std::shared_ptr<models::CausalLM> load_model(const ModelOptions& options,
                                             const CommonOptions& common) {
  const std::string model = resolve_model(options.model);
  ProgressBar bar(common, "loading weights");
  models::LoadOptions load = load_options(options);
  load.progress = [&bar](int64_t done, int64_t total) {
    bar.update(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
  };
  return models::AutoModelForCausalLM::from_pretrained(model, load);
}

bool loads_packed(const models::LoadOptions& load, const models::ModelLocation& location,
                  layers::Mode mode) {
  const bool may = load.weights != models::WeightFormat::kAuto || mode == layers::Mode::kInference;
  return may && models::stays_packed(load, location, load.device_map.resolve());
}

ModelOptions settled(const ModelOptions& options, layers::Mode mode) {
  const models::LoadOptions load = load_options(options);
  const auto location = models::locate_model_files(resolve_model(options.model), load);
  ModelOptions settled = options;
  settled.model = location.gguf_file.empty() ? location.folder : location.gguf_file;
  settled.gguf_file.clear();
  settled.revision.clear();
  settled.weights = loads_packed(load, location, mode) ? "packed" : "unpacked";
  return settled;
}

std::vector<int64_t> parse_ids(const std::string& text) {
  const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  std::vector<int64_t> ids;
  if (std::all_of(text.begin(), text.end(), is_space)) {
    return ids;
  }
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    std::string_view word = std::string_view(text).substr(start, end - start);
    while (!word.empty() && is_space(word.front())) {
      word.remove_prefix(1);
    }
    while (!word.empty() && is_space(word.back())) {
      word.remove_suffix(1);
    }
    int64_t id = 0;
    const auto [last, status] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (status != std::errc() || last != word.data() + word.size()) {
      throw InvalidArgument(
          "cli", "ids", fmt::format("ids: expected numbers with commas between, got `{}`", word));
    }
    ids.push_back(id);
    start = end + 1;
  }
  return ids;
}

}  // namespace graft::cli

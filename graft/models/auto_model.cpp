#include "graft/models/auto_model.h"

#include <filesystem>

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/core/warn.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"
#include "graft/io/json.h"
#include "graft/layers/kernelize.h"
#include "graft/models/checkpoint_weights.h"
#include "graft/models/decoder.h"
#include "graft/models/registry.h"
#include "graft/nn/attention_name.h"
#include "graft/tensor/device.h"

namespace graft::models {

namespace fs = std::filesystem;

namespace {

// Where a model lies: a folder, or one .gguf file.
struct Location {
  fs::path folder;
  fs::path gguf_file;  // empty: config.json and safetensors in the folder
};

Location locate_in_folder(const fs::path& folder, const LoadOptions& options) {
  if (!options.gguf_file.empty()) {
    const fs::path file = folder / options.gguf_file;
    if (!is_file(file)) {
      throw NotFound("models.auto_model", "gguf-file",
                     fmt::format("gguf_file: expected a file `{}`, got none", file.string()));
    }
    return {folder, file};
  }
  if (!is_file(folder / "config.json")) {
    throw NotFound("models.auto_model", "config",
                   fmt::format("`{}`: expected a config.json, got none", folder.string()),
                   "for a GGUF model name the .gguf file itself, or set gguf_file");
  }
  return {folder, {}};
}

Location locate(const std::string& name_or_path, const LoadOptions& options) {
  const fs::path path(name_or_path);
  if (is_file(path)) {
    if (path.extension() != ".gguf") {
      throw InvalidArgument("models.auto_model", "file",
                            fmt::format("`{}`: expected a folder or a .gguf file", name_or_path));
    }
    return {path.parent_path(), path};
  }
  if (is_folder(path)) {
    return locate_in_folder(path, options);
  }
  if (!hub::is_repo_id(name_or_path)) {
    throw NotFound(
        "models.auto_model", "path",
        fmt::format("`{}`: expected a folder, a .gguf file or a repository id, got nothing "
                    "of that name",
                    name_or_path));
  }
  const auto snapshot = hub::find_snapshot(hub::cache_folder(), hub::RepoType::kModel, name_or_path,
                                           options.revision);
  if (!snapshot) {
    throw NotFound(
        "models.auto_model", "not-cached",
        fmt::format("`{}`: expected a folder of that name or a snapshot in the Hub cache, "
                    "got neither",
                    name_or_path),
        fmt::format("run `graft download {}`", name_or_path));
  }
  return locate_in_folder(snapshot->folder, options);
}

// Whether matrices stay in packed blocks.
bool stays_packed(const LoadOptions& options, const Location& location, const at::Device& device) {
  const bool can = !location.gguf_file.empty() && device.is_cpu() && !options.trainable;
  if (options.weights == WeightFormat::kPacked && !can) {
    throw InvalidArgument(
        "models.auto_model", "packed",
        fmt::format(
            "packed weights: expected a .gguf file, on the CPU, not to train, got `{}` on {}{}",
            location.gguf_file.empty() ? location.folder.string() : location.gguf_file.string(),
            device.str(), options.trainable ? ", to train" : ""));
  }
  const bool kernels = (options.use_kernels || options.kernel_config) && env::use_hub_kernels() &&
                       !env::disable_kernel_mapping();
  return options.weights == WeightFormat::kPacked ||
         (options.weights == WeightFormat::kAuto && can && kernels && !options.dtype);
}

// Kernels go in after the weights: the guard runs in the model's own dtype, on its device.
void swap_kernels(CausalLM& model, const LoadOptions& options) {
  if (!options.use_kernels && !options.kernel_config) {
    return;
  }
  if (!options.use_kernels) {
    warn("[models.auto_model] kernel_config without use_kernels: kernels are turned on");
  }
  const auto report = layers::kernelize(
      model, {.device = model.device(), .dtype = model.dtype(), .config = options.kernel_config});
  inform(report.to_text());
  nn::prepare_packed(model);
}

}  // namespace

WeightFormat parse_weight_format(const std::string& text) {
  if (text == "auto") {
    return WeightFormat::kAuto;
  }
  if (text == "packed") {
    return WeightFormat::kPacked;
  }
  if (text == "unpacked") {
    return WeightFormat::kUnpacked;
  }
  throw InvalidArgument("models.weights", "format",
                        fmt::format("weights: expected auto, packed or unpacked, got `{}`", text));
}

std::shared_ptr<CausalLM> AutoModelForCausalLM::from_pretrained(const std::string& name_or_path,
                                                                const LoadOptions& options) {
  nn::parse_attention_name(options.attn_implementation);  // a mistyped name comes first
  const Location location = locate(name_or_path, options);
  const at::Device device = options.device_map.resolve();
  tensor::ensure_device(device);
  const ModelOptions model_options{nn::choose_attention(options.attn_implementation, device)};

  GgufModel gguf;
  std::unique_ptr<WeightSource> source;
  fs::path config_path = location.gguf_file;
  if (location.gguf_file.empty()) {
    config_path = location.folder / "config.json";
    gguf.config = io::read_json_file(config_path, "models.config");
    source = open_safetensors(location.folder);
  } else {
    gguf = open_gguf(location.gguf_file);
    source = std::move(gguf.weights);
  }
  const ConfigReader config(std::move(gguf.config), config_path.string());
  const ModelFamily& family = config.parsed("model_type", "", &find_model_family);
  const auto model = family.make(config, model_options);
  options.device_map.check_covers(nn::list_weights(*model));

  const auto named_dtype = options.dtype ? options.dtype : read_dtype(config);
  const at::ScalarType dtype = named_dtype.value_or(source->stored_dtype());
  model->check_attention(dtype, device, options.trainable);
  load_weights(*model, *source,
               {.dtype = dtype,
                .device = device,
                .trainable = options.trainable,
                .packed = stays_packed(options, location, device),
                .progress = options.progress});
  model->finish_loading(location.folder.string(), location.gguf_file.string(), config.raw().dump(),
                        options.trainable);
  model->eval();
  swap_kernels(*model, options);
  return model;
}

}  // namespace graft::models

#include "graft/models/model_files.h"

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"
#include "graft/io/json.h"
#include "graft/models/checkpoint_weights.h"

namespace graft::models {

namespace fs = std::filesystem;

namespace {

ModelLocation locate_in_folder(const fs::path& folder, const LoadOptions& options) {
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

}  // namespace

ModelLocation locate_model_files(const std::string& name_or_path, const LoadOptions& options) {
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

ModelFiles open_model_files(const ModelLocation& location) {
  if (location.gguf_file.empty()) {
    return {io::read_json_file(location.config_file(), "models.config"),
            open_safetensors(location.folder)};
  }
  GgufModel gguf = open_gguf(location.gguf_file);
  return {std::move(gguf.config), std::move(gguf.weights)};
}

bool stays_packed(const LoadOptions& options, const ModelLocation& location,
                  const at::Device& device) {
  const bool can =
      !location.gguf_file.empty() && (device.is_cpu() || device.is_cuda()) && !options.trainable;
  if (options.weights == WeightFormat::kPacked && !can) {
    throw InvalidArgument("models.auto_model", "packed",
                          fmt::format("packed weights: expected a .gguf file, on the CPU or CUDA, "
                                      "not to train, got `{}` on {}{}",
                                      location.gguf_file.empty() ? location.folder.string()
                                                                 : location.gguf_file.string(),
                                      device.str(), options.trainable ? ", to train" : ""));
  }
  const bool kernels = (options.use_kernels || options.kernel_config) && env::use_hub_kernels() &&
                       !env::disable_kernel_mapping();
  return options.weights == WeightFormat::kPacked ||
         (options.weights == WeightFormat::kAuto && can && device.is_cpu() && kernels &&
          !options.dtype);
}

}  // namespace graft::models

#include "cli/model_path.h"

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"

namespace graft::cli {

namespace fs = std::filesystem;

std::string resolve_model(const std::string& argument) {
  if (!argument.empty()) {
    return argument;
  }
  if (const auto named = env::get("GRAFT_DEMO_MODEL")) {
    return *named;
  }
  const auto folder =
      fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "share/graft/models";
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    if (is_gguf_file(entry.path())) {
      return entry.path().string();
    }
  }
  throw NotFound(
      "cli", "demo-model",
      fmt::format("demo model: expected a .gguf file under `{}`, got none", folder.string()),
      "run `make demo`, or name a model folder or a .gguf file");
}

fs::path locate_model(const std::string& argument, const std::string& gguf_file,
                      const std::string& revision) {
  const std::string model = resolve_model(argument);
  if (is_file(model)) {
    return model;
  }
  if (is_folder(model)) {
    return gguf_file.empty() ? fs::path(model) : fs::path(model) / gguf_file;
  }
  if (!hub::is_repo_id(model) || model.ends_with(".gguf") || model.ends_with(".json")) {
    throw NotFound(
        "cli", "model",
        fmt::format("`{}`: expected a folder, a .gguf file or a Hub id, got nothing of that name",
                    model));
  }
  const auto snapshot =
      hub::find_snapshot(hub::cache_folder(), hub::RepoType::kModel, model, revision);
  if (!snapshot) {
    throw NotFound(
        "cli", "model",
        fmt::format("`{}`: expected a folder of that name or a snapshot under `{}`, got neither",
                    model, hub::cache_folder().string()),
        fmt::format("run `graft download {}`", model));
  }
  return gguf_file.empty() ? snapshot->folder : snapshot->folder / gguf_file;
}

bool is_gguf_file(const fs::path& path) { return path.extension() == ".gguf" && is_file(path); }

}  // namespace graft::cli

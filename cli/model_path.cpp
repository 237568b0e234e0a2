#include "cli/model_path.h"

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"

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

bool is_gguf_file(const fs::path& path) {
  return path.extension() == ".gguf" && fs::is_regular_file(path);
}

}  // namespace graft::cli

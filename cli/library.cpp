#include "cli/library.h"

#include <filesystem>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

fs::path library_path(std::string_view file) {
  const auto root = fs::read_symlink("/proc/self/exe").parent_path().parent_path();
  const auto installed = root / GRAFT_LIBRARY_FOLDER / file;
  return fs::exists(installed) ? installed : root / "lib" / file;
}

}  // namespace

void* library_symbol(std::string_view file, const char* symbol, int flags, std::string_view reason,
                     std::string_view hint) {
  const auto library = library_path(file);
  void* handle = dlopen(library.c_str(), flags);
  if (handle == nullptr) {
    throw LoadError(
        "cli", reason,
        fmt::format("`{}`: expected a loadable library, got: {}", library.string(), dlerror()),
        hint);
  }
  void* found = dlsym(handle, symbol);
  if (found == nullptr) {
    throw LoadError("cli", reason,
                    fmt::format("`{}`: expected symbol {}, got none", library.string(), symbol));
  }
  return found;
}

}  // namespace graft::cli

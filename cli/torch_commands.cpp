#include "cli/torch_commands.h"

#include <filesystem>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::cli {

const TorchCommands& torch_commands() {
  static const TorchCommands* table = [] {
    const auto program = std::filesystem::read_symlink("/proc/self/exe");
    const auto library = program.parent_path().parent_path() / "lib" / "libgraft_commands.so";
    // Global scope: kernel libraries that are opened later find libtorch's symbols through it.
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle == nullptr) {
      throw LoadError(
          "cli", "torch-commands",
          fmt::format("`{}`: expected a loadable library, got: {}", library.string(), dlerror()),
          "libtorch is found through the path it was built with; set LD_LIBRARY_PATH to another "
          "torch wheel's lib folder if that one moved");
    }
    auto* symbol =
        reinterpret_cast<decltype(&graft_torch_commands)>(dlsym(handle, "graft_torch_commands"));
    if (symbol == nullptr) {
      throw LoadError(
          "cli", "torch-commands",
          fmt::format("`{}`: expected symbol graft_torch_commands, got none", library.string()));
    }
    return symbol();
  }();
  return *table;
}

}  // namespace graft::cli

#include "cli/torch_commands.h"

#include <cstdlib>
#include <filesystem>

#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

// OpenMP threads that wait for each other spin for about ten milliseconds by default. On a machine
// that others use too, a spinning thread holds the processor that the awaited one needs, and a
// token takes seconds. A short spin costs nothing on an idle machine. libgomp reads this when it is
// loaded, hence before dlopen.
void spin_briefly() {
  if (!env::get("OMP_WAIT_POLICY") && !env::get("GOMP_SPINCOUNT")) {
    setenv("GOMP_SPINCOUNT", "1000", /*overwrite=*/0);
  }
}

// A forward pass frees and asks for the same megabytes in every layer. By default glibc gives them
// back to the kernel in between, and each page is faulted in again: 8 % of a prefill of 512 tokens.
// Numbers in MALLOC_* variables win.
void keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kMapThresholdBytes = 32 << 20;  // the most that glibc accepts
  constexpr int kTrimThresholdBytes = 1 << 30;
  if (!env::get("MALLOC_MMAP_THRESHOLD_") && !env::get("MALLOC_TRIM_THRESHOLD_")) {
    mallopt(M_MMAP_THRESHOLD, kMapThresholdBytes);
    mallopt(M_TRIM_THRESHOLD, kTrimThresholdBytes);
  }
#endif
}

fs::path library_path() {
  const auto root = fs::read_symlink("/proc/self/exe").parent_path().parent_path();
  const auto installed = root / GRAFT_LIBRARY_FOLDER / "libgraft_commands.so";
  return fs::exists(installed) ? installed : root / "lib" / "libgraft_commands.so";
}

}  // namespace

const TorchCommands& torch_commands() {
  static const TorchCommands* table = [] {
    spin_briefly();
    keep_freed_memory();
    const auto library = library_path();
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

#include "cli/torch_commands.h"

#include <cstdlib>

#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "graft/core/env.h"

#include "cli/library.h"

namespace graft::cli {

namespace {

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

}  // namespace

const TorchCommands& torch_commands() {
  static const TorchCommands* table = [] {
    spin_briefly();
    keep_freed_memory();
    // Global scope: kernel libraries that are opened later find libtorch's symbols through it.
    void* symbol = library_symbol(
        "libgraft_commands.so", "graft_torch_commands", RTLD_NOW | RTLD_GLOBAL, "torch-commands",
        "libtorch is found through the path it was built with; set LD_LIBRARY_PATH to another "
        "torch wheel's lib folder if that one moved");
    return reinterpret_cast<decltype(&graft_torch_commands)>(symbol)();
  }();
  return *table;
}

}  // namespace graft::cli

// A variant folder's shared library in the process, without Python: checked, opened once, never
// closed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/metadata.h"

namespace graft::kernel {

struct Resolution;   // package_source.h
struct TrustPolicy;  // trust.h

struct LoadedKernel {
  std::string repository;
  std::string source;
  std::string commit;  // of a snapshot of the Hub, else empty
  std::string variant;
  std::filesystem::path folder;
  Metadata metadata;
  std::map<std::string, PackageLayer> layers;  // from layers.json, else published_layers()
  std::string ref;                             // that the commit came from
  uint64_t bytes_fetched = 0;                  // that were not on this machine before
  std::vector<std::shared_ptr<const LoadedKernel>> dependencies;  // of metadata.kernel_depends
  std::vector<CanaryWrongAnswer> wrong_answers;  // of the canary: layers that may not be used

  // An op of the package.
  // Throws   LoadError `kernel.loader.missing-op` listing the ops that are
  // there.
  c10::OperatorHandle op(const std::string& name) const;
  // Names of all ops, without the namespace.
  std::vector<std::string> op_names() const;
};

// Verifies and loads what resolve() chose; the same folder gives the same object again, and so does
// another commit of the repository with the same digest.
//
//   sealed copy of the library -> digest of every file -> may it be loaded (trust.h) -> headers and
//   symbols -> canary (canary.h) -> dlopen of the copy in local scope, bound lazily -> ops by name
//
// A layer compiled ahead of time goes the same way with all its libraries (compiled_layer.h).
//
// For a CPU device libtorch_cuda stays out of the process. A CUDA variant needs ensure_device()
// before.
// Throws   IntegrityError `kernel.loader.digest` listing every violation, or as trust.h; LoadError
// `kernel.loader.*`:
//          python-only (no native library), id-taken (another folder with the same id is loaded),
//          seal, dlopen, no-ops, foreign-ops (ops under another id); `kernel.elf.*`: what
//          check_elf() throws, entry, symbols, unique-symbols; `kernel.canary.*`: what
//          pass_canary() throws; `kernel.aot.*`: what check_compiled_layer() throws, library.
// loaded  what metadata.kernel_depends names, kept with the kernel
// Thread-safe.
std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution, const TrustPolicy& trust,
                                         std::vector<std::shared_ptr<const LoadedKernel>> loaded);
std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution);

}  // namespace graft::kernel

// A variant folder's shared library in the process, without Python: checked, opened once, never
// closed.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>

#include "graft/kernel/resolver.h"

namespace graft::kernel {

struct LoadedKernel {
  std::string repository;
  std::string source;
  std::string commit;  // of the cached snapshot, else empty
  std::string variant;
  std::filesystem::path folder;
  Metadata metadata;
  std::map<std::string, PackageLayer> layers;  // from layers.json, else published_layers()

  // An op of the package.
  // Throws   LoadError `kernel.loader.missing-op` listing the ops that are
  // there.
  c10::OperatorHandle op(const std::string& name) const;
  // Names of all ops, without the namespace.
  std::vector<std::string> op_names() const;
};

// Verifies and loads what resolve() chose; the same folder gives the same object again.
//
//   digest of every file -> look at the ELF headers -> dlopen in local scope, bound lazily -> ops
//   by name
//
// For a CPU device libtorch_cuda stays out of the process. A CUDA variant needs ensure_device()
// before.
// Throws   IntegrityError `kernel.loader.digest` listing every violation; LoadError
// `kernel.loader.*`:
//          python-only (no native library), id-taken (another folder with the same id is loaded),
//          dlopen, no-ops; what check_elf() throws.
// Thread-safe.
std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution);

}  // namespace graft::kernel

// Places where kernel packages are looked for, in order. A place answers with the folder of a
// package's build variants, or says where it looked in vain.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/kernel/reference.h"

namespace graft::kernel {

struct Package {
  std::filesystem::path variants_folder;  // its sub-folders are the build variants
  std::string only_variant;               // the one to look at; empty: all of them
  std::optional<int64_t> version;         // that metadata.json must name; absent: any
  std::string commit;                     // empty where the place knows none
};

class PackageSource {
 public:
  virtual ~PackageSource() = default;
  // As the trace shows it, e.g. `embedded hub`.
  virtual std::string name() const = 0;
  // The package, or nothing; `looked` then tells a person where was looked and what was not there.
  // Throws what the place cannot answer (a network source: NetworkError).
  virtual std::optional<Package> find(const LayerReference& reference,
                                      std::string& looked) const = 0;
};

using PackageSources = std::vector<std::shared_ptr<const PackageSource>>;

// LOCAL_KERNELS, an absolute path, the embedded hub, the cache that huggingface_hub and `kernels`
// share. None asks the network. LOCAL_KERNELS overrides any version; the embedded hub holds one
// version of each package; the cache is asked for `v1` (kernel repositories), then `main` (the
// older model repositories), unless a ref is named.
const PackageSources& local_sources();

// GRAFT_EMBEDDED_HUB, else `share/graft/hub` beside the library's own folder.
std::filesystem::path embedded_hub();

// Repositories of the embedded hub, e.g. `graft-kernels/rms-norm`.
std::vector<std::string> embedded_packages();

}  // namespace graft::kernel

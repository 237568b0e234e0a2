// From a repository's name to the one variant folder that is to be loaded, with a reason for every
// one that is not.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "graft/kernel/metadata.h"
#include "graft/kernel/package_source.h"
#include "graft/kernel/reference.h"
#include "graft/kernel/variant.h"

namespace graft::kernel {

struct ResolveRequest {
  LayerReference reference;
  System system;
  int capability = 0;  // of the CUDA device, major * 10 + minor
};

struct Resolution {
  std::filesystem::path folder;  // build/<variant>
  std::string variant;
  Metadata metadata;
  std::string source;  // `LOCAL_KERNELS`, `path`, `embedded hub`, `cache`
  std::string commit;  // of the cached snapshot, else empty
  std::vector<std::pair<std::string, std::string>> refused;  // variants passed over, with reasons
};

// Asks the sources in order; the first that has the package decides. Of its variants the best is
// taken that this system accepts, whose metadata.json agrees with its name, and, for CUDA, whose
// code runs on the device.
//
// Throws   NotFound `kernel.resolver.missing-package` naming every place that was looked at;
//          IncompatibleError `kernel.resolver.no-variant` with one line per variant and its reason,
//          or `kernel.resolver.architecture` when only the device's compute capability stands in
//          the way; FormatError for broken metadata; what a source throws.
Resolution resolve(const ResolveRequest& request, const PackageSources& sources = local_sources());

}  // namespace graft::kernel

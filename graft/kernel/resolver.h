// From a repository's name to the one variant folder that is to be loaded, with a reason for every
// one that is not. Looks at local places only, in this order: LOCAL_KERNELS, an absolute path, the
// embedded hub.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "graft/kernel/metadata.h"
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
  std::string source;  // `embedded hub`, `LOCAL_KERNELS`, `path`
  std::vector<std::pair<std::string, std::string>> refused;  // variants passed over, with reasons
};

// Throws   NotFound `kernel.resolver.missing-package` naming every place that was looked at;
//          IncompatibleError `kernel.resolver.no-variant` with one line per variant and its reason,
//          or `kernel.resolver.architecture` when only the device's compute capability stands in
//          the way; FormatError for broken metadata.
Resolution resolve(const ResolveRequest& request);

// GRAFT_EMBEDDED_HUB, else `share/graft/hub` beside the library's own folder.
std::filesystem::path embedded_hub();

// Repositories of the embedded hub, e.g. `graft-kernels/rms-norm`.
std::vector<std::string> embedded_packages();

}  // namespace graft::kernel

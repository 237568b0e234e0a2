// What the ops of published kernels are for: those that the Hub's Python layers describe in Python
// alone.
#pragma once

#include <map>
#include <string>

#include "graft/kernel/metadata.h"

namespace graft::kernel {

struct LoadedKernel;

// The layers of a package without layers.json, by its name and the ops that it registered: the
// plain activations of kernels-community/activation. Empty for other packages. Source
// kernels-community/activation; none of its ops has a gradient of its own
std::map<std::string, PackageLayer> published_layers(const LoadedKernel& kernel);

}  // namespace graft::kernel

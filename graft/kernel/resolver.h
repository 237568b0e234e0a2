// From a repository's name to the one variant folder that is to be loaded, with a reason for every
// one that is not.
#pragma once

#include <functional>
#include <vector>

#include "graft/kernel/package_source.h"

namespace graft::kernel {

// Asks the sources in order; the first that has a fitting variant of the package decides. Of its
// variants the best is taken that this system accepts, whose metadata.json agrees with its name,
// and, for CUDA, whose code runs on the device. LOCAL_KERNELS and a path settle the question.
//
// Throws   NotFound `kernel.resolver.missing-package` naming every place that was looked at;
//          IncompatibleError `kernel.resolver.no-variant` with one line per variant and its reason,
//          or `kernel.resolver.architecture` when only the device's compute capability stands in
//          the way; FormatError for broken metadata; what a source throws.
Resolution resolve(const ResolveRequest& request,
                   const PackageSources& sources = default_sources());

// A kernel of a dependency tree.
struct ResolvedKernel {
  LayerReference reference;  // repository and ref as they were asked for
  Resolution resolution;
  std::vector<size_t> dependencies;  // earlier entries of the tree
};

// What stands in for a dependency's reference, e.g. a locked commit. Throws to refuse.
using Pin = std::function<LayerReference(const LayerReference&)>;

// The kernel and everything that metadata.json names in `kernel-depends`, dependencies first, the
// kernel itself last. Each is resolved as resolve() does, with the same sources and trust; one that
// several name by the same reference is resolved once.
//
// Throws   as resolve(); IncompatibleError `kernel.resolver.dependency-cycle`, `.dependency-depth`
//          (more than 8 deep) or `.dependency-count` (more than 64).
std::vector<ResolvedKernel> resolve_tree(const ResolveRequest& request,
                                         const PackageSources& sources = default_sources(),
                                         const Pin& pin = {});

}  // namespace graft::kernel

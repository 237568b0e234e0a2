// Published kernels as layers of a model: the adapters that bind() takes for a layer of
// kernel::published_layers(). Internal to the room.
#pragma once

#include <memory>

#include "graft/kernel/loader.h"
#include "graft/layers/contract.h"

namespace graft::layers::published {

// kernels-community/activation: `op(Tensor! out, Tensor input) -> ()`. Gated ops want both halves in
// one tensor; halves that do not lie so are copied together. No gradient.
// All throw   LoadError `layers.published.schema` naming every difference from the published text.
std::shared_ptr<const Activation::Kernel> bind_activation(const kernel::LoadedKernel& kernel,
                                                          const kernel::PackageLayer& layer);
std::shared_ptr<const GatedActivation::Kernel> bind_gated_activation(
    const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer);

// kernels-community/rmsnorm (CPU, XPU) and the RMSNorm of layer-norm (CUDA: rows of a multiple of 8 up
// to 8192 elements), both with their backward.
std::shared_ptr<const RmsNorm::Kernel> bind_rms_norm(const RmsNorm::Spec& spec,
                                                     const kernel::LoadedKernel& kernel,
                                                     const kernel::PackageLayer& layer);

// kernels-community/rotary, both directions: its backward is the rotation the other way. Tables wider
// than the heads turn them in the tables' dtype.
std::shared_ptr<const Rotary::Kernel> bind_rotary(const kernel::LoadedKernel& kernel,
                                                  const kernel::PackageLayer& layer);

}  // namespace graft::layers::published

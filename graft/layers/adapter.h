// Binds the ops of a loaded package to a contract: arguments by name, types checked against the
// schema that PyTorch's dispatcher holds. An op with the contract's canonical schema is called
// unboxed.
#pragma once

#include <memory>

#include "graft/kernel/loader.h"
#include "graft/layers/contract.h"

namespace graft::layers {

// Each returns the contract's kernel on top of the package's ops.
//
// Throws   LoadError `layers.adapter.signature` listing every mismatch between layers.json and the
// schemas;
//          IncompatibleError `layers.adapter.numeric-variant` when the package does not offer what
//          the slot needs, `layers.adapter.contract` when its layer is of another contract.
// The result records itself for autograd where the package offers a backward. Where it does not,
// inputs that require grad, in grad mode, throw   IncompatibleError `layers.adapter.no-backward`: the
// ops have no gradient of their own and would cut the graph silently.
std::shared_ptr<const RmsNorm::Kernel> bind(const RmsNorm::Spec& spec,
                                            const kernel::LoadedKernel& kernel,
                                            const kernel::PackageLayer& layer);
std::shared_ptr<const Activation::Kernel> bind(const Activation::Spec& spec,
                                               const kernel::LoadedKernel& kernel,
                                               const kernel::PackageLayer& layer);
std::shared_ptr<const GatedActivation::Kernel> bind(const GatedActivation::Spec& spec,
                                                    const kernel::LoadedKernel& kernel,
                                                    const kernel::PackageLayer& layer);
std::shared_ptr<const Linear::Kernel> bind(const Linear::Spec& spec,
                                           const kernel::LoadedKernel& kernel,
                                           const kernel::PackageLayer& layer);
std::shared_ptr<const PackedLinear::Kernel> bind(const PackedLinear::Spec& spec,
                                                 const kernel::LoadedKernel& kernel,
                                                 const kernel::PackageLayer& layer);
std::shared_ptr<const Rotary::Kernel> bind(const Rotary::Spec& spec,
                                           const kernel::LoadedKernel& kernel,
                                           const kernel::PackageLayer& layer);
std::shared_ptr<const QkNormRotary::Kernel> bind(const QkNormRotary::Spec& spec,
                                                 const kernel::LoadedKernel& kernel,
                                                 const kernel::PackageLayer& layer);
std::shared_ptr<const Attention::Kernel> bind(const Attention::Spec& spec,
                                              const kernel::LoadedKernel& kernel,
                                              const kernel::PackageLayer& layer);
std::shared_ptr<const CausalLoss::Kernel> bind(const CausalLoss::Spec& spec,
                                               const kernel::LoadedKernel& kernel,
                                               const kernel::PackageLayer& layer);
std::shared_ptr<const Mlp::Kernel> bind(const Mlp::Spec& spec, const kernel::LoadedKernel& kernel,
                                        const kernel::PackageLayer& layer);

}  // namespace graft::layers

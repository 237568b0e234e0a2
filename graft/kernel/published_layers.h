// What the ops of published kernels are for: those that the Hub's Python layers describe in Python
// alone.
#pragma once

#include <map>
#include <string>

#include "graft/kernel/metadata.h"

namespace graft::kernel {

struct LoadedKernel;

// The layers of a package without layers.json, by its name and the ops that it registered:
//   activation  Silu, Gelu, GeluTanh, NewGELU, FastGELU, QuickGELU, SiluAndMul, GeluAndMul,
//               GeluTanhAndMul (also under transformers' names SiLU and GeLU); no gradients
//   rmsnorm     RMSNorm        layer-norm  LlamaRMSNorm        rotary  apply_rotary_transformers
// Empty for other packages. Their ops are bound by the adapters in layers/published/, which hold every
// schema against the published one.
// Source   kernels-community activation (v1), rmsnorm (v1), layer-norm (v1), rotary (v2)
std::map<std::string, PackageLayer> published_layers(const LoadedKernel& kernel);

}  // namespace graft::kernel

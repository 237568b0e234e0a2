#include "graft/kernel/published_layers.h"

#include <algorithm>
#include <array>
#include <utility>

#include "graft/kernel/loader.h"

namespace graft::kernel {

namespace {

PackageLayer make_layer(const LoadedKernel& kernel, const std::string& contract) {
  PackageLayer layer;
  layer.contract = contract;
  layer.devices = {kernel.metadata.backend};
  layer.dtypes = {"float32", "bfloat16", "float16"};
  return layer;
}

// `op(Tensor! out, Tensor input) -> ()`. The gated ops of that package want both halves in one
// tensor, which the contract does not promise.
std::map<std::string, PackageLayer> activation_layers(const LoadedKernel& kernel) {
  constexpr std::array<std::pair<const char*, const char*>, 6> kOps = {
      {{"SiLU", "silu"},
       {"GeLU", "gelu"},
       {"GeluTanh", "gelu_tanh"},
       {"NewGELU", "gelu_new"},
       {"FastGELU", "gelu_fast"},
       {"QuickGELU", "gelu_quick"}}};
  const auto names = kernel.op_names();
  std::map<std::string, PackageLayer> layers;
  for (const auto& [layer, op] : kOps) {
    if (std::find(names.begin(), names.end(), op) != names.end()) {
      PackageLayer entry = make_layer(kernel, "Activation");
      entry.ops["forward"] = {op, {{"out", "out"}, {"input", "x"}}};
      layers.emplace(layer, std::move(entry));
    }
  }
  return layers;
}

}  // namespace

std::map<std::string, PackageLayer> published_layers(const LoadedKernel& kernel) {
  if (kernel.metadata.name == "activation") {
    return activation_layers(kernel);
  }
  return {};
}

}  // namespace graft::kernel

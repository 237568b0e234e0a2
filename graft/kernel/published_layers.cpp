#include "graft/kernel/published_layers.h"

#include <algorithm>
#include <array>

#include "graft/kernel/loader.h"

namespace graft::kernel {

namespace {

PackageLayer make_layer(const LoadedKernel& kernel, const std::string& contract,
                        const std::string& op) {
  PackageLayer layer;
  layer.contract = contract;
  layer.published = kernel.metadata.name;
  layer.devices = {kernel.metadata.backend};
  layer.dtypes = {"float32", "bfloat16", "float16"};
  layer.ops["forward"] = {op, {}};
  return layer;
}

bool has_op(const LoadedKernel& kernel, const std::string& op) {
  const auto names = kernel.op_names();
  return std::find(names.begin(), names.end(), op) != names.end();
}

struct NamedOp {
  const char* name;   // of the published layer
  const char* graft;  // as graft and transformers call the layer
  const char* contract;
  const char* op;
};

constexpr std::array<NamedOp, 9> kActivations = {
    {{"Silu", "SiLU", "Activation", "silu"},
     {"Gelu", "GeLU", "Activation", "gelu"},
     {"GeluTanh", "GeluTanh", "Activation", "gelu_tanh"},
     {"NewGELU", "NewGELU", "Activation", "gelu_new"},
     {"FastGELU", "FastGELU", "Activation", "gelu_fast"},
     {"QuickGELU", "QuickGELU", "Activation", "gelu_quick"},
     {"SiluAndMul", "SiluAndMul", "GatedActivation", "silu_and_mul"},
     {"GeluAndMul", "GeluAndMul", "GatedActivation", "gelu_and_mul"},
     {"GeluTanhAndMul", "GeluTanhAndMul", "GatedActivation", "gelu_tanh_and_mul"}}};

// A build registers what it has: all of them on CUDA, `silu_and_mul` alone on the CPU.
std::map<std::string, PackageLayer> activation_layers(const LoadedKernel& kernel) {
  std::map<std::string, PackageLayer> layers;
  for (const NamedOp& entry : kActivations) {
    if (has_op(kernel, entry.op)) {
      PackageLayer layer = make_layer(kernel, entry.contract, entry.op);
      layer.can_torch_compile = true;
      layers.emplace(entry.name, layer);
      layers.emplace(entry.graft, layer);
    }
  }
  return layers;
}

// Both weigh as llama does, or round less often.
std::map<std::string, PackageLayer> norm_layers(const LoadedKernel& kernel, const std::string& name,
                                                const std::string& op) {
  PackageLayer layer = make_layer(kernel, "RMSNorm", op);
  layer.has_backward = true;
  layer.variants = {{"cast_before_weight", 0}};
  return {{name, layer}};
}

std::map<std::string, PackageLayer> rotary_layers(const LoadedKernel& kernel) {
  PackageLayer layer = make_layer(kernel, "Rotary", "apply_rotary");
  layer.has_backward = true;  // the op itself, the other way round
  layer.can_torch_compile = true;
  layer.variants = {{"half_split", 0}};
  return {{"apply_rotary_transformers", layer}};
}

}  // namespace

std::map<std::string, PackageLayer> published_layers(const LoadedKernel& kernel) {
  const std::string& name = kernel.metadata.name;
  if (name == "activation") {
    return activation_layers(kernel);
  }
  if (name == "rmsnorm") {
    return norm_layers(kernel, "RMSNorm", "apply_rms_norm");
  }
  if (name == "layer-norm") {
    return norm_layers(kernel, "LlamaRMSNorm", "dropout_add_ln_fwd");
  }
  if (name == "rotary") {
    return rotary_layers(kernel);
  }
  return {};
}

}  // namespace graft::kernel

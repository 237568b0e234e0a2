#include "graft/layers/slot.h"

#include <map>
#include <mutex>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/layers/adapter.h"
#include "graft/layers/guard.h"
#include "graft/layers/session.h"

namespace graft::layers {

namespace {

using GuardKey = std::tuple<std::string, std::string, std::string, std::string, int, std::string>;

// The ops behind a layer and how they are called. A package may offer several layers of one
// contract.
std::string binding_text(const kernel::PackageLayer& layer) {
  std::string text;
  for (const auto& [role, op] : layer.ops) {
    text += fmt::format("{}={}({})", role, op.op, fmt::join(op.arguments, ","));
  }
  for (const auto& [variant, number] : layer.variants) {
    text += fmt::format(";{}={}", variant, number);
  }
  return text;
}

// A verdict holds for the ops of a library, a contract's variant, a dtype and a device: the same
// inputs give the same answer, so models after the first need not run the check again.
std::map<GuardKey, std::string>& guard_verdicts() {
  static std::map<GuardKey, std::string> verdicts;
  return verdicts;
}

std::mutex& guard_mutex() {
  static std::mutex mutex;
  return mutex;
}

// What a guard's verdict depends on beside the variant: a layer that serves certain rows or one eps is
// asked for the slot's own, any other for the same ones whatever the slot.
template <typename Spec>
std::pair<Spec, std::string> guarded_as(const Spec& spec, const kernel::PackageLayer&) {
  return {spec, ""};
}

std::pair<RmsNorm::Spec, std::string> guarded_as(RmsNorm::Spec spec,
                                                 const kernel::PackageLayer& layer) {
  spec.hidden_size = layer.rows.empty() ? 0 : spec.hidden_size;
  spec.eps = layer.eps.empty() ? 0.0 : spec.eps;
  return {spec, fmt::format(" {} {}", spec.hidden_size, spec.eps)};
}

}  // namespace

SlotModule::SlotModule(std::string layer_name, std::string variant_name)
    : layer_name_(std::move(layer_name)), variant_name_(std::move(variant_name)) {}

void SlotModule::train(bool on) {
  const bool changes = on != is_training();
  torch::nn::Module::train(on);
  if (changes && session_) {
    session_->mode_changed(*this, on);
  }
}

template <typename Contract>
void ContractSlot<Contract>::swap_in(const kernel::LoadedKernel& kernel,
                                     const kernel::PackageLayer& layer, at::ScalarType dtype,
                                     at::Device device) {
  const std::shared_ptr<const Kernel> candidate = bind(spec_, kernel, layer);
  const auto [guarded, scope] = guarded_as(spec_, layer);
  const GuardKey key{kernel.metadata.id,     binding_text(layer),     layer_name(),
                     variant_name() + scope, static_cast<int>(dtype), device.str()};
  std::string verdict;
  {
    const std::lock_guard lock(guard_mutex());
    auto entry = guard_verdicts().find(key);
    if (entry == guard_verdicts().end()) {
      entry = guard_verdicts()
                  .emplace(key, guard(guarded, *candidate, *reference_, dtype, device))
                  .first;
    }
    verdict = entry->second;
  }
  if (!verdict.empty()) {
    throw IncompatibleError("layers.guard", "refused",
                            fmt::format("`{}` {}: {}", kernel.repository, layer_name(), verdict));
  }
  swap(candidate);
}

template class ContractSlot<RmsNorm>;
template class ContractSlot<Activation>;
template class ContractSlot<GatedActivation>;
template class ContractSlot<Linear>;
template class ContractSlot<PackedLinear>;
template class ContractSlot<Rotary>;
template class ContractSlot<QkNormRotary>;
template class ContractSlot<Attention>;
template class ContractSlot<CausalLoss>;
template class ContractSlot<Mlp>;

}  // namespace graft::layers

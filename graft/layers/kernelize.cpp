#include "graft/layers/kernelize.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/layers/session.h"

namespace graft::layers {

namespace {

// The case of upstream's KernelizeFallback that left a slot without a kernel; kNone: nobody wanted
// one there.
Fallback fallback_case(const SlotTrace& trace) {
  static const std::map<std::string_view, Fallback> kCases = {
      {"layers.mapping.no-layer", Fallback::kNoLayer},
      {"layers.mapping.no-device", Fallback::kNoDevice},
      {"layers.mapping.no-capability", Fallback::kNoCompatibleProperties},
      {"layers.mapping.no-mode", Fallback::kNoCompatibleMode},
      {"layers.kernelize.layer-capability", Fallback::kNoCompatibleMode},
      {"layers.kernelize.missing-layer", Fallback::kCannotLoad},
      {"layers.kernelize.disabled", Fallback::kNone},
      {"layers.kernelize.inside", Fallback::kNone},
      {"layers.kernelize.packed", Fallback::kNone},
      {"layers.kernelize.part-mapped", Fallback::kNone},
      {"layers.kernelize.reference", Fallback::kNone}};
  if (!trace.chosen.empty() || trace.considered.empty()) {
    return Fallback::kNone;
  }
  // Kernels that were tried stand behind the mappings that had none.
  const std::string& outcome = trace.considered.back().outcome;
  const auto found = kCases.find(outcome);
  if (found != kCases.end()) {
    // Where there is nothing for an enclosing slot, its parts answer for themselves.
    return trace.encloses ? Fallback::kNone : found->second;
  }
  const bool unavailable = outcome.starts_with("kernel.resolver.") ||
                           outcome.starts_with("hub.client.") || outcome.starts_with("hub.http.");
  return unavailable ? Fallback::kCannotLoad : Fallback::kRefused;
}

// Device and dtype that the options name, else those of the first floating-point parameter.
std::pair<at::Device, at::ScalarType> placement(const torch::nn::Module& model,
                                                const KernelizeOptions& options) {
  at::Tensor first;
  for (const auto& parameter : model.parameters()) {
    if (parameter.is_floating_point()) {
      first = parameter;
      break;
    }
  }
  if (!first.defined() && !(options.device && options.dtype)) {
    throw InvalidArgument("layers.kernelize", "placement",
                          "device and dtype: expected both for a model without floating-point "
                          "parameters, got none",
                          "pass {.device = at::kCPU, .dtype = at::kFloat}");
  }
  const at::Device device = options.device ? *options.device : first.device();
  if (!device.is_cpu() && !device.is_cuda()) {
    throw InvalidArgument("layers.kernelize", "device",
                          fmt::format("device: expected cpu or cuda, got {}", device.str()));
  }
  return {device, options.dtype ? *options.dtype : first.scalar_type()};
}

struct NamedSlot {
  std::string name;
  std::string path;
  SlotModule* slot;
};
using NamedSlots = std::vector<NamedSlot>;

// A slot called `kernel` goes by the name of the module that holds it, which a person knows.
NamedSlots find_slots(const torch::nn::Module& model) {
  NamedSlots slots;
  constexpr std::string_view kUsualName = ".kernel";
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    auto* slot = dynamic_cast<SlotModule*>(item.value().get());
    const bool known = std::any_of(slots.begin(), slots.end(),
                                   [&](const NamedSlot& other) { return other.slot == slot; });
    if (slot != nullptr && !known) {
      std::string name = item.key();
      if (name.ends_with(kUsualName)) {
        name.resize(name.size() - kUsualName.size());
      }
      slots.push_back({std::move(name), item.key(), slot});
    }
  }
  return slots;
}

// A name in the user's mapping that the model does not have is a mistake, not a wish.
void check_layer_names(const KernelizeOptions& options, const NamedSlots& slots) {
  if (!options.config) {
    return;
  }
  std::set<std::string> known;
  for (const auto& [name, path, slot] : slots) {
    known.insert(slot->layer_name());
  }
  for (const auto& layer : options.config->kernel_mapping.layers()) {
    if (!known.contains(layer)) {
      throw InvalidArgument(
          "layers.kernelize", "unknown-layer",
          fmt::format("kernel config: expected layers of the model ({}), got `{}`",
                      fmt::join(known, ", "), layer));
    }
  }
}

// Throws when a slot has no kernel though it may not fall back.
void enforce_fallback(const KernelizeReport& report, Fallback allowed) {
  std::vector<std::string> bare;
  for (const auto& slot : report.slots) {
    const auto bit = static_cast<unsigned>(fallback_case(slot));
    if (bit != 0 && (bit & static_cast<unsigned>(allowed)) == 0) {
      bare.push_back(fmt::format("{} ({})", slot.slot, slot.considered.back().reason));
    }
  }
  if (!bare.empty()) {
    throw IncompatibleError(
        "layers.kernelize", "strict",
        fmt::format("expected a kernel for every slot, got none for {} of {}: {}", bare.size(),
                    report.slots.size(), fmt::join(bare, "; ")));
  }
}

}  // namespace

KernelizeReport kernelize(torch::nn::Module& model, const KernelizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Mode mode = options.mode.value_or(model.is_training() ? Mode::kTraining : Mode::kInference);
  search_order(mode);  // refuses a mode without inference and training
  const NamedSlots slots = find_slots(model);
  check_layer_names(options, slots);
  const auto [device, dtype] = placement(model, options);
  const auto session = std::make_shared<KernelSession>(options, device, dtype);
  for (const auto& [name, path, slot] : slots) {
    session->add_slot(*slot, name, path);
  }
  for (const auto& [name, path, slot] : slots) {
    if (!options.dry_run) {
      slot->attach(session);
    }
    session->select(*slot, mode);
  }
  KernelizeReport report = session->report();
  report.mode = mode_name(mode);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  try {
    enforce_fallback(report, options.strict ? Fallback::kNone : options.fallback);
  } catch (const Error&) {
    if (!options.dry_run) {
      unkernelize(model);
    }
    throw;
  }
  return report;
}

void unkernelize(torch::nn::Module& model) {
  for (const auto& [name, path, slot] : find_slots(model)) {
    slot->restore_reference();
    slot->attach(nullptr);
  }
}

std::optional<KernelizeReport> kernelize_report(torch::nn::Module& model) {
  for (const auto& [name, path, slot] : find_slots(model)) {
    if (slot->session()) {
      return slot->session()->report();
    }
  }
  return std::nullopt;
}

}  // namespace graft::layers

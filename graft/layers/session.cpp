#include "graft/layers/session.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/kernel/get_kernel.h"
#include "graft/tensor/device.h"

namespace graft::layers {

namespace {

std::string disabling_variable() {
  if (!env::use_hub_kernels()) {
    return "USE_HUB_KERNELS";
  }
  return env::disable_kernel_mapping() ? "DISABLE_KERNEL_MAPPING" : "";
}

const char* device_type(const at::Device& device) { return device.is_cuda() ? "cuda" : "cpu"; }

// Why a mapping has nothing for a slot.
Consideration nothing_mapped(const std::string& mapping, KernelMapping::Outcome outcome,
                             const SlotModule& slot, const std::string& device, int capability,
                             Mode mode) {
  switch (outcome) {
    case KernelMapping::Outcome::kNoLayer:
      return {"", "layers.mapping.no-layer",
              fmt::format("the {} mapping has no layer {}", mapping, slot.layer_name())};
    case KernelMapping::Outcome::kNoDevice:
      return {"", "layers.mapping.no-device",
              fmt::format("the {} mapping has no {} for device {}", mapping, slot.layer_name(),
                          device)};
    case KernelMapping::Outcome::kNoCompatibleProperties:
      return {"", "layers.mapping.no-capability",
              fmt::format("the {} mapping has no {} for compute capability {}", mapping,
                          slot.layer_name(), capability)};
    default:
      return {"", "layers.mapping.no-mode",
              fmt::format("the {} mapping has no {} for mode {}", mapping, slot.layer_name(),
                          mode_name(mode))};
  }
}

// Whether the package's layer says it can do what it is registered for, and what is asked.
std::string capability_refusal(const kernel::PackageLayer& layer, Mode registered, Mode mode,
                               const std::string& device, at::ScalarType dtype) {
  if (has(registered, Mode::kTraining) && !layer.has_backward) {
    return "the layer is registered for training, but has no backward";
  }
  if (has(registered, Mode::kTorchCompile) && !layer.can_torch_compile) {
    return "the layer is registered for a compile mode, but is not safe under capture";
  }
  if (has(mode, Mode::kTraining) && !layer.has_backward) {
    return "the layer has no backward, so it cannot serve training";
  }
  if (has(mode, Mode::kTorchCompile) && !layer.can_torch_compile) {
    return "the layer is not safe under capture, so it cannot serve a compile mode";
  }
  if (std::find(layer.devices.begin(), layer.devices.end(), device) == layer.devices.end()) {
    return fmt::format("the layer serves {}, not {}", fmt::join(layer.devices, ", "), device);
  }
  if (std::find(layer.dtypes.begin(), layer.dtypes.end(), tensor::dtype_name(dtype)) ==
      layer.dtypes.end()) {
    return fmt::format("the layer serves {}, not {}", fmt::join(layer.dtypes, ", "),
                       tensor::dtype_name(dtype));
  }
  return "";
}

[[noreturn]] void throw_missing_layer(const kernel::LayerReference& reference, bool offers_others) {
  throw NotFound(
      "layers.kernelize", "missing-layer",
      fmt::format("`{}`: expected layer `{}`, got a package that offers {}", reference.repository,
                  reference.layer, offers_others ? "others alone" : "none"));
}

bool any_packed(const std::vector<const SlotModule*>& slots) {
  return std::any_of(slots.begin(), slots.end(), [](const SlotModule* slot) {
    return slot->layer_name() == PackedLinear::kName;
  });
}

}  // namespace

KernelSession::KernelSession(const KernelizeOptions& options, at::Device device,
                             at::ScalarType dtype)
    : options_(options),
      device_(device),
      dtype_(dtype),
      request_(kernel::device_request({}, device)) {
  request_.trust = options.trust;
  request_.dry_run = options.dry_run;
  facts_.device = device.str();
  facts_.dtype = tensor::dtype_name(dtype);
  facts_.disabled_by = disabling_variable();
  facts_.dry_run = options.dry_run;
}

void KernelSession::add_slot(SlotModule& slot, const std::string& name, const std::string& path) {
  order_.push_back(&slot);
  names_[&slot] = name;
  for (auto& outer : enclosing_) {
    if (path.starts_with(outer.prefix) &&
        outer.slot->encloses(std::string_view(path).substr(outer.prefix.size()))) {
      outer.parts.push_back(&slot);
    }
  }
  if (slot.encloses()) {
    enclosing_.push_back({&slot, path.substr(0, path.rfind('.') + 1), {}});
  }
}

std::string KernelSession::part_that_the_user_maps(const SlotModule& slot, Mode mode) const {
  for (const Enclosing& outer : enclosing_) {
    for (const SlotModule* part : outer.parts) {
      if (outer.slot == &slot && options_.config &&
          options_.config->kernel_mapping
                  .find(part->layer_name(), device_type(device_), request_.capability, mode)
                  .outcome == KernelMapping::Outcome::kFound) {
        return part->layer_name();
      }
    }
  }
  return "";
}

std::vector<KernelSession::Candidate> KernelSession::candidates(const SlotModule& slot, Mode mode,
                                                                SlotTrace& trace) const {
  std::vector<Candidate> found;
  const auto look_up = [&](const std::string& which, const KernelMapping& mapping) {
    const auto result =
        mapping.find(slot.layer_name(), device_type(device_), request_.capability, mode);
    if (result.outcome == KernelMapping::Outcome::kFound) {
      found.push_back({result.reference, result.registered});
    } else {
      trace.considered.push_back(nothing_mapped(which, result.outcome, slot, device_type(device_),
                                                request_.capability, mode));
    }
  };
  if (options_.config) {
    look_up("user's", options_.config->kernel_mapping);
  }
  const std::string part = found.empty() ? part_that_the_user_maps(slot, mode) : "";
  if (!part.empty()) {
    trace.considered.push_back({"", "layers.kernelize.part-mapped",
                                fmt::format("the user's mapping names {}, a part of it", part)});
  } else if (!options_.config || options_.config->inherit_mapping) {
    look_up("default", default_mapping());
  }
  return found;
}

const KernelSession::LoadOutcome& KernelSession::resolve_once(
    const kernel::LayerReference& reference) const {
  const auto [entry, is_new] = loads_.try_emplace(reference.repository + "@" + reference.ref);
  LoadOutcome& outcome = entry->second;
  if (is_new) {
    try {
      kernel::ResolveRequest request = request_;
      request.reference = reference;
      outcome.tree = kernel::resolve_tree(request);
      outcome.kernel = options_.dry_run ? nullptr : kernel::load_tree(outcome.tree, options_.trust);
    } catch (const std::exception&) {
      outcome.refusal = std::current_exception();
    }
  }
  if (outcome.refusal) {
    std::rethrow_exception(outcome.refusal);
  }
  return outcome;
}

void KernelSession::refuse_wrong_answer(const SlotModule& slot, const std::string& layer,
                                        const kernel::LoadedKernel& kernel) const {
  for (const auto& wrong : kernel.wrong_answers) {
    if (wrong.layer == layer && wrong.variant == slot.variant_name() &&
        wrong.dtype == tensor::dtype_name(dtype_)) {
      throw IncompatibleError("kernel.canary", "wrong-answer",
                              fmt::format("`{}` {}: {}", kernel.repository, layer, wrong.reason));
    }
  }
}

void KernelSession::require_capability(const kernel::PackageLayer& layer,
                                       const Candidate& candidate, Mode mode) const {
  const auto reason =
      capability_refusal(layer, candidate.registered, mode, device_type(device_), dtype_);
  if (!reason.empty()) {
    throw IncompatibleError("layers.kernelize", "layer-capability",
                            fmt::format("`{}`: {}", candidate.reference.text(), reason));
  }
}

void KernelSession::plan(Mode mode, const Candidate& candidate, SlotTrace& trace) const {
  const auto& tree = resolve_once(candidate.reference).tree;
  const kernel::Resolution& found = tree.back().resolution;
  // What is here already says which layers it has; the rest says so once it is fetched.
  const auto layers = found.bytes_fetched == 0 ? kernel::read_layers(found.folder)
                                               : std::map<std::string, kernel::PackageLayer>{};
  if (!layers.empty()) {
    const auto layer = layers.find(candidate.reference.layer);
    if (layer == layers.end()) {
      throw_missing_layer(candidate.reference, /*offers_others=*/true);
    }
    require_capability(layer->second, candidate, mode);
  }
  trace.chosen = candidate.reference.text();
  trace.variant = found.variant;
  trace.id = found.metadata.id;
  trace.source = found.source;
  trace.commit = found.commit;
  trace.is_signed = found.is_signed;
  for (const auto& kernel : tree) {
    trace.bytes_fetched += kernel.resolution.bytes_fetched;
  }
}

void KernelSession::apply(SlotModule& slot, Mode mode, const Candidate& candidate,
                          SlotTrace& trace) const {
  if (options_.dry_run) {
    plan(mode, candidate, trace);
    return;
  }
  const auto kernel = resolve_once(candidate.reference).kernel;
  const auto layer = kernel->layers.find(candidate.reference.layer);
  if (layer == kernel->layers.end()) {
    throw_missing_layer(candidate.reference, !kernel->layers.empty());
  }
  require_capability(layer->second, candidate, mode);
  refuse_wrong_answer(slot, layer->first, *kernel);
  slot.swap_in(*kernel, layer->second, dtype_, device_);
  trace.chosen = candidate.reference.text();
  trace.variant = kernel->variant;
  trace.id = kernel->metadata.id;
  trace.source = kernel->source;
  trace.commit = kernel->commit;
  for (const auto& resolved : resolve_once(candidate.reference).tree) {
    trace.bytes_fetched += resolved.resolution.bytes_fetched;
  }
  trace.capturable = layer->second.can_torch_compile;
}

// Whatever a stranger's package throws is a refusal of that package, written down.
bool KernelSession::try_candidate(SlotModule& slot, Mode mode, const Candidate& candidate,
                                  SlotTrace& trace) const {
  Consideration step{candidate.reference.text(), "chosen", ""};
  try {
    apply(slot, mode, candidate, trace);
  } catch (const Error& error) {
    step.outcome = error.code();
    step.reason = error.what();
  } catch (const std::exception& error) {
    step.outcome = "layers.kernelize.failed";
    step.reason = error.what();
  }
  const bool chosen = step.outcome == "chosen";
  if (!chosen) {
    inform(fmt::format("{}: {} refused: {}", trace.slot, step.kernel, step.reason));
  }
  trace.considered.push_back(std::move(step));
  return chosen;
}

std::optional<Consideration> KernelSession::standing_aside(const SlotModule& slot,
                                                           SlotTrace& trace) const {
  if (!facts_.disabled_by.empty()) {
    return Consideration{"", "layers.kernelize.disabled",
                         fmt::format("{} turns kernels off", facts_.disabled_by)};
  }
  for (const Enclosing& outer : enclosing_) {
    const auto found = traces_.find(outer.slot);
    if (outer.slot == &slot && any_packed(outer.parts)) {
      return Consideration{"", "layers.kernelize.packed",
                           "its weights stay in the blocks of their file: PackedLinear serves"};
    }
    if (found != traces_.end() && !found->second.chosen.empty() &&
        std::find(outer.parts.begin(), outer.parts.end(), &slot) != outer.parts.end()) {
      trace.inside = found->second.slot;
      return Consideration{
          "", "layers.kernelize.inside",
          fmt::format("`{}` for {} does this slot's work too", found->second.chosen, trace.inside)};
    }
  }
  return std::nullopt;
}

void KernelSession::select(SlotModule& slot, Mode mode) {
  SlotTrace trace;
  trace.slot = names_.at(&slot);
  trace.layer = slot.layer_name();
  trace.numeric_variant = slot.variant_name();
  trace.mode = mode_name(mode);
  trace.encloses = slot.encloses();
  if (!options_.dry_run) {
    slot.restore_reference();
  }
  facts_.mode = mode_name(mode);
  if (auto aside = standing_aside(slot, trace)) {
    trace.considered.push_back(*std::move(aside));
  } else {
    for (const auto& candidate : candidates(slot, mode, trace)) {
      if (candidate.reference.is_reference_forward()) {
        trace.considered.push_back(
            {"", "layers.kernelize.reference", "the mapping asks for the model's own forward"});
        break;
      }
      if (try_candidate(slot, mode, candidate, trace)) {
        break;
      }
    }
  }
  traces_[&slot] = std::move(trace);
}

void KernelSession::mode_changed(SlotModule& slot, bool training) {
  if (!options_.mode) {
    select(slot, training ? Mode::kTraining : Mode::kInference);
  }
}

KernelizeReport KernelSession::report() const {
  KernelizeReport report = facts_;
  for (const SlotModule* slot : order_) {
    report.slots.push_back(traces_.at(slot));
  }
  return report;
}

}  // namespace graft::layers

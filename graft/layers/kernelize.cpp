#include "graft/layers/kernelize.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/layers/session.h"
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

// Whether the package's layer says it can do what is asked.
std::string capability_refusal(const kernel::PackageLayer& layer, Mode mode,
                               const std::string& device, at::ScalarType dtype) {
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

}  // namespace

KernelSession::KernelSession(const KernelizeOptions& options) : options_(options) {
  tensor::ensure_device(options.device);
  capability_ = tensor::capability(options.device);
  system_ = kernel::this_system(device_type(options.device),
                                options.device.is_cuda() ? tensor::torch_cuda_version() : 0);
  facts_.device = options.device.str();
  facts_.dtype = tensor::dtype_name(options.dtype);
  facts_.disabled_by = disabling_variable();
}

void KernelSession::add_slot(SlotModule& slot, const std::string& name) {
  order_.push_back(name);
  names_[&slot] = name;
}

std::vector<KernelSession::Candidate> KernelSession::candidates(const SlotModule& slot, Mode mode,
                                                                SlotTrace& trace) const {
  std::vector<Candidate> found;
  const auto look_up = [&](const std::string& which, const KernelMapping& mapping) {
    const auto result =
        mapping.find(slot.layer_name(), device_type(options_.device), capability_, mode);
    if (result.outcome == KernelMapping::Outcome::kFound) {
      found.push_back({result.reference, result.registered});
    } else {
      trace.considered.push_back(nothing_mapped(which, result.outcome, slot,
                                                device_type(options_.device), capability_, mode));
    }
  };
  if (options_.config) {
    look_up("user's", options_.config->kernel_mapping);
  }
  if (!options_.config || options_.config->inherit_mapping) {
    look_up("default", default_mapping());
  }
  return found;
}

std::shared_ptr<const kernel::LoadedKernel> KernelSession::load_once(
    const kernel::LayerReference& reference) const {
  const auto [entry, is_new] = loads_.try_emplace(reference.repository + "@" + reference.ref);
  if (is_new) {
    try {
      entry->second.kernel =
          kernel::load(reference.repository, kernel::resolve({reference, system_, capability_}));
    } catch (const Error&) {
      entry->second.refusal = std::current_exception();
    }
  }
  if (entry->second.refusal) {
    std::rethrow_exception(entry->second.refusal);
  }
  return entry->second.kernel;
}

bool KernelSession::try_candidate(SlotModule& slot, Mode mode, const Candidate& candidate,
                                  SlotTrace& trace) const {
  const std::string text = candidate.reference.text();
  try {
    const auto kernel = load_once(candidate.reference);
    const auto layer = kernel->layers.find(candidate.reference.layer);
    if (layer == kernel->layers.end()) {
      throw NotFound("layers.kernelize", "missing-layer",
                     fmt::format("`{}`: expected layer `{}`, got a package without it",
                                 candidate.reference.repository, candidate.reference.layer));
    }
    if (const auto reason =
            capability_refusal(layer->second, mode, device_type(options_.device), options_.dtype);
        !reason.empty()) {
      throw IncompatibleError("layers.kernelize", "layer-capability",
                              fmt::format("`{}`: {}", text, reason));
    }
    slot.swap_in(*kernel, layer->second, options_.dtype, options_.device);
    trace.considered.push_back({text, "chosen", ""});
    trace.chosen = text;
    trace.variant = kernel->variant;
    trace.id = kernel->metadata.id;
    trace.source = kernel->source;
    return true;
  } catch (const Error& error) {
    trace.considered.push_back({text, error.code(), error.what()});
    inform(fmt::format("{}: {} refused: {}", trace.slot, text, error.what()));
    return false;
  }
}

void KernelSession::select(SlotModule& slot, Mode mode) {
  SlotTrace trace;
  trace.slot = names_.at(&slot);
  trace.layer = slot.layer_name();
  trace.numeric_variant = slot.variant_name();
  trace.mode = mode_name(mode);
  slot.restore_reference();
  facts_.mode = mode_name(mode);
  if (!facts_.disabled_by.empty()) {
    trace.considered.push_back(
        {"", "layers.kernelize.disabled", fmt::format("{} turns kernels off", facts_.disabled_by)});
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
  traces_[trace.slot] = std::move(trace);
}

void KernelSession::mode_changed(SlotModule& slot, bool training) {
  if (!options_.mode) {
    select(slot, training ? Mode::kTraining : Mode::kInference);
  }
}

KernelizeReport KernelSession::report() const {
  KernelizeReport report = facts_;
  for (const auto& name : order_) {
    report.slots.push_back(traces_.at(name));
  }
  return report;
}

KernelizeReport kernelize(torch::nn::Module& model, const KernelizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.mode) {
    search_order(*options.mode);  // refuses a mode without inference and training
  }
  const auto session = std::make_shared<KernelSession>(options);
  const Mode mode = options.mode.value_or(model.is_training() ? Mode::kTraining : Mode::kInference);
  for (const auto& item : model.named_modules()) {
    if (auto* slot = dynamic_cast<SlotModule*>(item.value().get())) {
      // The slot is a child of the module that a person knows by name.
      const auto dot = item.key().rfind('.');
      session->add_slot(*slot, dot == std::string::npos ? item.key() : item.key().substr(0, dot));
      slot->attach(session);
      session->select(*slot, mode);
    }
  }
  KernelizeReport report = session->report();
  report.mode = mode_name(mode);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options.strict) {
    std::vector<std::string> bare;
    for (const auto& slot : report.slots) {
      if (slot.chosen.empty()) {
        bare.push_back(fmt::format(
            "{} ({})", slot.slot,
            slot.considered.empty() ? "nothing considered" : slot.considered.back().reason));
      }
    }
    if (!bare.empty()) {
      throw IncompatibleError(
          "layers.kernelize", "strict",
          fmt::format("expected a kernel for every slot, got none for {} of {}: {}", bare.size(),
                      report.slots.size(), fmt::join(bare, "; ")));
    }
  }
  return report;
}

void unkernelize(torch::nn::Module& model) {
  for (const auto& module : model.modules()) {
    if (auto* slot = dynamic_cast<SlotModule*>(module.get())) {
      slot->restore_reference();
      slot->attach(nullptr);
    }
  }
}

std::optional<KernelizeReport> kernelize_report(torch::nn::Module& model) {
  for (const auto& module : model.modules()) {
    if (const auto* slot = dynamic_cast<SlotModule*>(module.get());
        slot != nullptr && slot->session()) {
      return slot->session()->report();
    }
  }
  return std::nullopt;
}

}  // namespace graft::layers

#include "graft/layers/mapping.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"

namespace graft::layers {

namespace {

constexpr std::array<std::string_view, 8> kDeviceTypes = {"cpu", "cuda", "mps", "neuron",
                                                          "npu", "rocm", "tpu", "xpu"};

int parse_capability(std::string_view text, std::string_view whole) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 10) {
    throw InvalidArgument(
        "layers.mapping", "device",
        fmt::format(
            "device: expected `cuda:MIN` or `cuda:MIN-MAX` with capabilities such as 80, got `{}`",
            whole));
  }
  return value;
}

void check(const DeviceKey& device) {
  if (std::find(kDeviceTypes.begin(), kDeviceTypes.end(), device.type) == kDeviceTypes.end()) {
    throw InvalidArgument("layers.mapping", "device",
                          fmt::format("device: expected one of {}, got `{}`",
                                      fmt::join(kDeviceTypes, ", "), device.type));
  }
  const bool whole = device.min_capability == 0 && device.max_capability == INT_MAX;
  if (device.min_capability > device.max_capability ||
      (!whole && device.type != "cuda" && device.type != "rocm")) {
    throw InvalidArgument("layers.mapping", "capability",
                          fmt::format("device `{}`: expected min <= max capability, and "
                                      "capabilities for cuda and rocm alone, got {}-{}",
                                      device.type, device.min_capability, device.max_capability));
  }
}

int64_t width(const DeviceKey& device) {
  return static_cast<int64_t>(device.max_capability) - device.min_capability;
}

}  // namespace

DeviceKey parse_device_key(std::string_view text) {
  DeviceKey key;
  const auto colon = text.find(':');
  key.type = std::string(text.substr(0, colon));
  if (colon != std::string_view::npos) {
    const auto interval = text.substr(colon + 1);
    const auto dash = interval.find('-');
    key.min_capability = parse_capability(interval.substr(0, dash), text);
    if (dash != std::string_view::npos) {
      key.max_capability = parse_capability(interval.substr(dash + 1), text);
    }
  }
  check(key);
  return key;
}

void KernelMapping::set(const std::string& layer, DeviceKey device, ModeMap modes) {
  check(device);
  auto& entries = layers_[layer];
  const auto same = std::find_if(entries.begin(), entries.end(),
                                 [&](const Entry& entry) { return entry.device == device; });
  if (same != entries.end()) {
    same->modes = std::move(modes);
  } else {
    entries.push_back({std::move(device), std::move(modes)});
  }
}

KernelMapping::LookUp KernelMapping::find(const std::string& layer, std::string_view device_type,
                                          int capability, Mode mode) const {
  LookUp result;
  const auto entries = layers_.find(layer);
  if (entries == layers_.end()) {
    return result;
  }
  result.outcome = Outcome::kNoDevice;
  const Entry* best = nullptr;
  for (const auto& entry : entries->second) {
    if (entry.device.type != device_type) {
      continue;
    }
    result.outcome = Outcome::kNoCompatibleProperties;
    const bool whole = entry.device.min_capability == 0 && entry.device.max_capability == INT_MAX;
    const bool holds = whole || (capability >= entry.device.min_capability &&
                                 capability <= entry.device.max_capability);
    if (holds && (best == nullptr || width(entry.device) < width(best->device))) {
      best = &entry;
    }
  }
  if (best == nullptr) {
    return result;
  }
  result.outcome = Outcome::kNoCompatibleMode;
  for (const Mode candidate : search_order(mode)) {
    if (const auto found = best->modes.find(candidate); found != best->modes.end()) {
      return {Outcome::kFound, found->second, candidate};
    }
  }
  return result;
}

std::vector<std::string> KernelMapping::layers() const {
  std::vector<std::string> names;
  for (const auto& [name, entries] : layers_) {
    names.push_back(name);
  }
  return names;
}

const KernelMapping& default_mapping() {
  // Layer name, package, and the layer's name there. These have a backward, so they serve training too.
  constexpr std::array<std::array<std::string_view, 3>, 12> kLayers = {{
      {"RMSNorm", "rms-norm", "RMSNorm"},
      {"SiLU", "activation", "SiLU"},
      {"GeLU", "activation", "GeLU"},
      {"GeluTanh", "activation", "GeluTanh"},
      {"NewGELU", "activation", "NewGELU"},
      {"FastGELU", "activation", "FastGELU"},
      {"QuickGELU", "activation", "QuickGELU"},
      {"SiluAndMul", "activation", "SiluAndMul"},
      {"GeluAndMul", "activation", "GeluAndMul"},
      {"GeluTanhAndMul", "activation", "GeluTanhAndMul"},
      {"rotary_pos_emb", "rotary", "apply_rotary_transformers"},
      {"ForCausalLMLoss", "loss", "ForCausalLMLoss"},
  }};
  static const KernelMapping mapping = [&] {
    KernelMapping made;
    const auto reference = [](std::string_view package, std::string_view layer) {
      return kernel::parse_layer_reference(fmt::format("graft-kernels/{}:{}", package, layer));
    };
    for (const auto& [name, package, layer] : kLayers) {
      for (const char* device : {"cpu", "cuda"}) {
        made.set(std::string(name), {device},
                 {{Mode::kTrainingCompile, reference(package, layer)}});
      }
    }
    // No backward here.
    for (const char* device : {"cpu", "cuda"}) {
      made.set("Linear", {device}, {{Mode::kInferenceCompile, reference("linear", "Linear")}});
      made.set("PackedLinear", {device},
               {{Mode::kInferenceCompile, reference("linear", "PackedLinear")}});
      made.set("QKNormRotary", {device},
               {{Mode::kInferenceCompile, reference("rotary", "QKNormRotary")}});
      made.set("Attention", {device},
               {{Mode::kInferenceCompile, reference("attention", "Attention")}});
    }
    // In training, and before Hopper as far as is known, the parts of an MLP are as fast or faster (docs/benchmarks.md).
    for (const char* layer : {"SwiGLUMLP", "GeGLUMLP", "MLP"}) {
      for (const DeviceKey& device : {DeviceKey{"cpu"}, DeviceKey{"cuda", 90}}) {
        made.set(layer, device, {{Mode::kInferenceCompile, reference("mlp", layer)}});
      }
    }
    return made;
  }();
  return mapping;
}

}  // namespace graft::layers

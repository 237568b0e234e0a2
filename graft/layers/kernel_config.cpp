#include "graft/layers/kernel_config.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/json.h"

namespace graft::layers {

namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& key, const std::string& expected, const json& got) {
  throw InvalidArgument(
      "layers.kernel_config", "grammar",
      fmt::format("`{}`: expected {}, got {}", key, expected, got.dump().substr(0, 120)));
}

ModeMap parse_modes(const std::string& key, const json& value) {
  if (value.is_string()) {
    return {{Mode::kFallback, kernel::parse_layer_reference(value.get_ref<const std::string&>())}};
  }
  if (value.is_null()) {
    return {{Mode::kFallback, {}}};
  }
  if (!value.is_object() || value.empty()) {
    fail(key, "a kernel or an object of modes", value);
  }
  ModeMap modes;
  for (const auto& [mode, kernel] : value.items()) {
    if (!kernel.is_string() && !kernel.is_null()) {
      fail(key + "." + mode, "a kernel", kernel);
    }
    modes.emplace(parse_mode(mode),
                  kernel::parse_layer_reference(
                      kernel.is_null() ? "" : kernel.get_ref<const std::string&>()));
  }
  return modes;
}

void parse_layer(const std::string& layer, const json& value, KernelMapping& mapping) {
  if (!value.is_object()) {
    for (const char* device : {"cpu", "cuda"}) {
      mapping.set(layer, {device}, parse_modes(layer, value));
    }
    return;
  }
  if (value.empty()) {
    fail(layer, "at least one device", value);
  }
  for (const auto& [device, kernels] : value.items()) {
    mapping.set(layer, parse_device_key(device), parse_modes(layer + "." + device, kernels));
  }
}

}  // namespace

KernelConfig KernelConfig::from_json(std::string_view text) {
  const json parsed = io::parse_json(text, "layers.kernel_config", "kernel config",
                                     {.max_bytes = 1 << 20, .max_depth = 8});
  if (!parsed.is_object()) {
    fail("kernel config", "an object", parsed);
  }
  KernelConfig config;
  const bool wrapped = parsed.contains("kernel_mapping");
  if (wrapped) {
    for (const auto& [key, value] : parsed.items()) {
      const bool known = key == "kernel_mapping" ? value.is_object()
                                                 : key == "inherit_mapping" && value.is_boolean();
      if (!known) {
        fail(key, "kernel_mapping (an object) or inherit_mapping (a boolean)", value);
      }
    }
    config.inherit_mapping = parsed.value("inherit_mapping", true);
  }
  for (const auto& [layer, value] : (wrapped ? parsed["kernel_mapping"] : parsed).items()) {
    parse_layer(layer, value, config.kernel_mapping);
  }
  return config;
}

}  // namespace graft::layers

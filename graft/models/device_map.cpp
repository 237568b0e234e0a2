#include "graft/models/device_map.h"

#include <algorithm>
#include <array>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/json.h"
#include "graft/tensor/device.h"

namespace graft::models {

namespace {

constexpr const char* kOneDevice = "name one device that holds the whole model";

at::Device parse_entry(const std::string& module, const nlohmann::json& value) {
  if (value.is_number_integer() && value.get<int64_t>() >= 0) {
    return tensor::parse_device(fmt::format("cuda:{}", value.get<int64_t>()));
  }
  if (!value.is_string()) {
    throw InvalidArgument("models.device-map", "json",
                          fmt::format("device_map `{}`: expected a device's name or number, got {}",
                                      module, value.dump()));
  }
  const auto name = value.get<std::string>();
  if (name == "disk") {
    throw InvalidArgument(
        "models.device-map", "split",
        fmt::format("device_map `{}`: expected cpu or cuda, got `disk`", module),
        "weights of the checkpoint's own dtype on the CPU stay in the file's pages by themselves");
  }
  return tensor::parse_device(name);
}

// `module` is the tensor itself or one of the modules around it.
bool holds(const std::string& module, const std::string& tensor) {
  return module.empty() || tensor == module || tensor.starts_with(module + ".");
}

}  // namespace

DeviceMap::DeviceMap(const std::string& text) {
  constexpr std::array kSplits = {"balanced", "balanced_low_0", "sequential"};
  if (std::find(kSplits.begin(), kSplits.end(), text) != kSplits.end()) {
    throw InvalidArgument("models.device-map", "split",
                          fmt::format("device_map: expected cpu, cuda, cuda:N, auto or a map to "
                                      "one device, got `{}`",
                                      text),
                          kOneDevice);
  }
  if (text.starts_with("{")) {
    read_object(text);
  } else if (text == "auto") {
    auto_ = true;
  } else {
    device_ = tensor::parse_device(text);
  }
}

void DeviceMap::read_object(const std::string& text) {
  nlohmann::json object;
  try {
    object = io::parse_json(text, "models.device-map", "device_map");
  } catch (const FormatError& error) {
    throw InvalidArgument("models.device-map", "json", error.what());
  }
  if (object.empty()) {
    throw InvalidArgument("models.device-map", "json",
                          "device_map: expected at least one module, got none");
  }
  modules_.clear();
  std::set<std::string> devices;
  for (const auto& [module, value] : object.items()) {
    device_ = parse_entry(module, value);
    devices.insert(device_.str());
    modules_.push_back(module);
  }
  if (devices.size() > 1) {
    throw InvalidArgument("models.device-map", "split",
                          fmt::format("device_map: expected one device for all modules, got {}",
                                      fmt::join(devices, ", ")),
                          kOneDevice);
  }
}

at::Device DeviceMap::resolve() const {
  if (auto_) {
    return tensor::cuda_available() ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  }
  return device_;
}

void DeviceMap::check_covers(const std::vector<nn::WeightSlot>& weights) const {
  std::vector<std::string> uncovered;
  for (const nn::WeightSlot& slot : weights) {
    const auto covers = [&slot](const std::string& module) { return holds(module, slot.key); };
    if (std::none_of(modules_.begin(), modules_.end(), covers)) {
      uncovered.push_back(slot.key);
    }
  }
  if (!uncovered.empty()) {
    throw InvalidArgument("models.device-map", "uncovered",
                          fmt::format("device_map: expected a device for each of {} tensors, got "
                                      "none for {}: {}",
                                      weights.size(), uncovered.size(), fmt::join(uncovered, ", ")),
                          R"(name the rest under "")");
  }
}

}  // namespace graft::models

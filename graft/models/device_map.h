// Where a model's weights go: transformers' `device_map`, as far as one device carries the model.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>

#include "graft/nn/block.h"

namespace graft::models {

// One device for the whole model. Made from what a C++ program has at hand:
//
//   LoadOptions{.device_map = at::kCUDA}
//   LoadOptions{.device_map = "auto"}
//   LoadOptions{.device_map = R"({"": "cuda:1"})"}
class DeviceMap {
 public:
  DeviceMap() = default;
  // The conversions are implicit, so that LoadOptions reads as transformers' call does.
  DeviceMap(at::Device device) : device_(device) {}
  DeviceMap(at::DeviceType type) : device_(type) {}
  // `cpu`, `cuda`, `cuda:1`, `auto` (the first CUDA device, else the CPU), or a JSON object of
  // module name to device, where a number is a CUDA index and the name "" is the whole model.
  // Throws   InvalidArgument `models.device-map.split` (more than one device, `disk`, `balanced`
  //          and the like), `.json` (no object of names and devices); what
  //          tensor::parse_device throws
  DeviceMap(const std::string& text);
  DeviceMap(const char* text) : DeviceMap(std::string(text)) {}

  // The device itself; `auto` looks for CUDA now, which opens libtorch_cuda.
  at::Device resolve() const;

  // Checks that every weight of the model (nn::list_weights) has a device.
  //
  // Throws   InvalidArgument `models.device-map.uncovered` naming those without
  void check_covers(const std::vector<nn::WeightSlot>& weights) const;

 private:
  void read_object(const std::string& text);

  at::Device device_ = at::kCPU;
  bool auto_ = false;
  std::vector<std::string> modules_ = {""};  // those that the map names
};

}  // namespace graft::models

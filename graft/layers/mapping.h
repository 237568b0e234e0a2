// Which kernel a layer gets: layer name -> device -> mode -> kernel.
#pragma once

#include <climits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "graft/kernel/reference.h"
#include "graft/layers/mode.h"

namespace graft::layers {

// A device type, for CUDA with an interval of compute capabilities (major * 10 + minor, both ends
// included).
struct DeviceKey {
  std::string type;
  int min_capability = 0;
  int max_capability = INT_MAX;
  bool operator==(const DeviceKey&) const = default;
};

// `cpu`, `cuda`, `cuda:80-89`, `cuda:90` (90 and later). Throws InvalidArgument.
DeviceKey parse_device_key(std::string_view text);

using ModeMap = std::map<Mode, kernel::LayerReference>;

class KernelMapping {
 public:
  // Registers kernels of a layer on a device. An identical device key replaces the whole mode map,
  // as upstream.
  // Throws   InvalidArgument for an unknown device type or min above max.
  void set(const std::string& layer, DeviceKey device, ModeMap modes);

  enum class Outcome { kFound, kNoLayer, kNoDevice, kNoCompatibleProperties, kNoCompatibleMode };
  struct LookUp {
    Outcome outcome = Outcome::kNoLayer;
    kernel::LayerReference reference;
    Mode registered = Mode::kFallback;
  };
  // The narrowest interval that holds the capability wins; of equally narrow ones the first
  // registered.
  LookUp find(const std::string& layer, std::string_view device_type, int capability,
              Mode mode) const;

  bool empty() const { return layers_.empty(); }
  std::vector<std::string> layers() const;

 private:
  struct Entry {
    DeviceKey device;
    ModeMap modes;
  };
  std::map<std::string, std::vector<Entry>> layers_;
};

// Our own packages for every layer that they serve, on the CPU and on CUDA.
const KernelMapping& default_mapping();

}  // namespace graft::layers

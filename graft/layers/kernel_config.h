// What a user says about kernels: his own mapping, laid over the default one or in its place.
#pragma once

#include <string_view>

#include "graft/layers/mapping.h"

namespace graft::layers {

// Grammar of the JSON form:
//   { "<Layer>": value, … }  or  { "kernel_mapping": {…}, "inherit_mapping": true }
//   value  := kernel | { "<device>": kernel | { "<mode>": kernel, … }, … }
//   kernel := "org/repo[@ref]:Layer" | "/absolute/path:Layer" | "" (the model's own forward)
//   device := cpu | cuda | cuda:80-89 | …      mode := inference | training | inference+compile | …
// A kernel without device holds on every device that graft supports; one without mode is a
// fallback.
struct KernelConfig {
  KernelMapping kernel_mapping;
  bool inherit_mapping = true;

  // Throws   InvalidArgument `layers.kernel_config.*` or FormatError, naming the key. Nothing is
  // looked up.
  static KernelConfig from_json(std::string_view text);
};

}  // namespace graft::layers

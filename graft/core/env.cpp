#include "graft/core/env.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::env {

std::optional<std::string> get(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

bool use_hub_kernels() {
  auto value = get("USE_HUB_KERNELS");
  if (!value) {
    return true;
  }
  std::transform(value->begin(), value->end(), value->begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return *value == "1" || *value == "ON" || *value == "YES" || *value == "TRUE";
}

bool disable_kernel_mapping() {
  const auto value = get("DISABLE_KERNEL_MAPPING");
  if (!value) {
    return false;
  }
  int parsed = 0;
  const auto [end, status] = std::from_chars(value->data(), value->data() + value->size(), parsed);
  if (status != std::errc() || end != value->data() + value->size()) {
    throw InvalidArgument(
        "core.env", "not-an-integer",
        fmt::format("DISABLE_KERNEL_MAPPING: expected an integer, got `{}`", *value));
  }
  return parsed != 0;
}

}  // namespace graft::env

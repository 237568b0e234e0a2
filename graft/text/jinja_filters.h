// Tables of native functions by name. Internal to graft/text.
#pragma once

#include <array>
#include <string_view>

#include "graft/text/jinja_object.h"

namespace graft::text::jinja {

struct NamedNative {
  std::string_view name;
  Native function;
};

template <size_t N>
Native find_native(const std::array<NamedNative, N>& table, std::string_view name) {
  for (const NamedNative& entry : table) {
    if (entry.name == name) {
      return entry.function;
    }
  }
  return nullptr;
}

Native find_sequence_filter(std::string_view name);

}  // namespace graft::text::jinja

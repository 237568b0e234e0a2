#include "graft/io/excerpt.h"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

namespace graft::io {

namespace {

// Bytes of the character that `text` begins with; 0 when it is no UTF-8.
size_t char_bytes(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) {
    return 1;
  }
  const size_t length = lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
  if (length == 0 || text.size() < length) {
    return 0;
  }
  uint32_t value = lead & (0x7fU >> length);
  for (size_t i = 1; i < length; ++i) {
    if (at(i) >> 6 != 2) {
      return 0;
    }
    value = value << 6 | (at(i) & 0x3fU);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  return value < kSmallest[length] || surrogate || value > 0x10ffff ? 0 : length;
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = char_bytes(text);
    if (length == 0) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

std::string excerpt(std::string_view text, size_t max_bytes) {
  std::string result;
  while (!text.empty()) {
    const size_t length = char_bytes(text);
    if (result.size() + std::max<size_t>(length, 1) > max_bytes) {
      return result + "…";
    }
    const auto first = static_cast<unsigned char>(text[0]);
    if (length == 0 || first < 0x20 || first == 0x7f) {
      result += fmt::format("\\x{:02x}", first);
      text.remove_prefix(1);
    } else {
      result += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return result;
}

std::string describe(const nlohmann::json& value, size_t max_bytes) {
  if (value.is_array()) {
    return fmt::format("an array of {}", value.size());
  }
  if (value.is_object()) {
    return fmt::format("an object of {} keys", value.size());
  }
  if (value.is_string()) {
    return fmt::format("\"{}\"", excerpt(value.get_ref<const std::string&>(), max_bytes));
  }
  return value.dump();
}

}  // namespace graft::io

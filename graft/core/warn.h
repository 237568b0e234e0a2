// The two log calls of rooms that see libtorch: its headers bring a newer fmt than spdlog accepts,
// so those rooms format the line themselves and do not include core/log.h.
#pragma once

#include <string_view>

namespace graft {

// Writes one line to the library's logger at level warn or info.
void warn(std::string_view message);
void inform(std::string_view message);

}  // namespace graft

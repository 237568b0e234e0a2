// Text from outside on its way to a terminal or a log.
#pragma once

#include <string>
#include <string_view>

namespace graft {

// Spells out what would steer a terminal or disguise a line: control characters but the newline (`\x1b`,
// `\u009b`), bytes that are no UTF-8 (`\xff`), and the characters that break lines or reverse the
// direction of text (`\u2028`, `\u202e`). Everything else stays as it is.
std::string printable(std::string_view text);

// The same on one line: a newline stands as `\n`, so that no text passes for two lines of ours.
std::string printable_line(std::string_view text);

}  // namespace graft

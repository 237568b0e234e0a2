// Texts from outside, as error messages may show them: short, and safe to print or to put into
// JSON.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace graft::io {

// Whether `text` is well-formed UTF-8: no overlong forms, surrogates or values above U+10FFFF.
bool is_utf8(std::string_view text);

// The first bytes of `text`, with an ellipsis where it was cut. Control characters and bytes that
// are no UTF-8 stand as `\xNN`, so that the result is always UTF-8 on one line.
std::string excerpt(std::string_view text, size_t max_bytes = 80);

// A JSON value as an error shows it: scalars by their text, containers by their kind and size.
std::string describe(const nlohmann::json& value, size_t max_bytes = 80);

}  // namespace graft::io

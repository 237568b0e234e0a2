// Bytes as text and back, strictly: one spelling per value.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace graft::trust {

// Standard base64 with padding; nothing for white space, other alphabets, wrong padding or unused
// bits that are not zero.
std::optional<std::string> decode_base64(std::string_view text);
std::string encode_base64(std::string_view bytes);

// Lower-case hexadecimal digits.
std::string to_hex(std::string_view bytes);

// SHA-256 as 32 bytes.
std::string sha256_bytes(std::string_view bytes);

}  // namespace graft::trust

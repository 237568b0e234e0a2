// The alphabet of byte-level vocabularies: each byte stands as one printable character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace graft::text {

// The character that stands for a byte.
char32_t byte_char(unsigned char byte);

// The byte that a character stands for, or -1.
int char_byte(char32_t c);

// Appends each byte of `text` as its character.
void append_byte_chars(std::string& out, std::string_view text);

// Bytes that append_byte_chars would write.
size_t byte_chars_size(std::string_view text);

// Appends the bytes that `token` stands for; false (and nothing appended) when a character of it
// stands for no byte.
bool append_char_bytes(std::string& out, std::string_view token);

}  // namespace graft::text

// Strings as Python sees them, on UTF-8: code points, white space, case. Internal to graft/text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace graft::text::jinja {

// Reads the code point at `offset` of valid UTF-8 and moves `offset` behind it.
char32_t next_code_point(std::string_view text, size_t& offset);
void append_code_point(std::string& out, char32_t code);
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);
bool is_valid_utf8(std::string_view text);
int64_t count_code_points(std::string_view text);
// Byte offset of the code point number `index` (clamped to the end).
size_t byte_offset(std::string_view text, int64_t index);

// Python's str.isspace and the pattern \s.
bool is_space(char32_t code);
bool is_line_break(char32_t code);
bool is_printable(char32_t code);
bool is_cased(char32_t code);
bool is_upper(char32_t code);
bool is_lower(char32_t code);
bool is_alpha(char32_t code);
bool is_decimal(char32_t code);
bool is_digit(char32_t code);
bool is_numeric(char32_t code);
bool is_identifier_start(char32_t code);
bool is_identifier_part(char32_t code);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_title(std::string_view text);        // str.title
std::string to_capitalized(std::string_view text);  // str.capitalize
std::string swap_case(std::string_view text);

// str.strip with white space (chars empty pointer) or a set of code points.
enum class Side { kLeft, kRight, kBoth };
std::string_view strip(std::string_view text, Side side, const std::string* chars = nullptr);

}  // namespace graft::text::jinja

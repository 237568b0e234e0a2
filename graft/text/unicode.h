// UTF-8 and the character properties that tokenizers rest on. The properties are those that the
// `tokenizers` library works with, so that vocabularies made with it split text the same way.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace graft::text {

enum CharFlag : uint16_t {
  kLetter = 1 << 0,       // \p{L}
  kNumber = 1 << 1,       // \p{N} of regular expressions
  kSpace = 1 << 2,        // White_Space
  kWord = 1 << 3,         // \w of the pre-tokenizer Whitespace
  kPunctuation = 1 << 4,  // ASCII punctuation or category P
  kOther = 1 << 5,        // what BERT's clean_text removes
  kNonspacing = 1 << 6,   // category Mn
  kCombining = 1 << 7,    // category M
  kNumeric = 1 << 8,      // category N of the pre-tokenizer Digits
  kNfcInert = 1 << 9,     // NFC neither changes it nor joins it to what stands before
  kRegexWord = 1 << 10,   // \w of regular expressions
};

namespace detail {
struct FlagTable {
  FlagTable();
  uint16_t page_of[0x1100];
  std::u16string values;  // pages of 256 code points, equal pages stored once
};
extern const FlagTable kFlagTable;
}  // namespace detail

// The CharFlag bits of a code point; 0 beyond Unicode.
inline uint16_t char_flags(char32_t c) {
  if (c > 0x10FFFF) {
    return 0;
  }
  const auto& table = detail::kFlagTable;
  return table.values[(static_cast<size_t>(table.page_of[c >> 8]) << 8) | (c & 0xFF)];
}

inline bool has_flag(char32_t c, CharFlag flag) { return (char_flags(c) & flag) != 0; }

// Canonical combining class; 0 for starters.
uint8_t combining_class(char32_t c);

// Number of the script in the library's list; 0 when it knows none.
uint16_t script_of(char32_t c);

// Simple lower case. U+0130 becomes two characters, which append_lower handles.
char32_t to_lower(char32_t c);
void append_lower(std::string& out, char32_t c);

// Bytes of the UTF-8 sequence that a lead byte opens, in valid UTF-8.
inline int utf8_length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// Reads the code point at `pos` of valid UTF-8 and moves `pos` past it.
inline char32_t next_char(std::string_view text, size_t& pos) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  if (lead < 0x80) {
    ++pos;
    return lead;
  }
  if (lead < 0xE0) {
    const char32_t c = ((lead & 0x1Fu) << 6) | (byte(pos + 1) & 0x3Fu);
    pos += 2;
    return c;
  }
  if (lead < 0xF0) {
    const char32_t c =
        ((lead & 0x0Fu) << 12) | ((byte(pos + 1) & 0x3Fu) << 6) | (byte(pos + 2) & 0x3Fu);
    pos += 3;
    return c;
  }
  const char32_t c = ((lead & 0x07u) << 18) | ((byte(pos + 1) & 0x3Fu) << 12) |
                     ((byte(pos + 2) & 0x3Fu) << 6) | (byte(pos + 3) & 0x3Fu);
  pos += 4;
  return c;
}

void append_utf8(std::string& out, char32_t c);
std::string to_utf8(char32_t c);

// Number of characters of valid UTF-8.
size_t count_chars(std::string_view text);

// Byte offset where the last character of valid, non-empty UTF-8 begins.
size_t last_char(std::string_view text);

// Offset of the first byte that breaks UTF-8, or the size of the text.
size_t valid_utf8_prefix(std::string_view text);

// Length of the longest ill-formed piece at the start of `text` that one U+FFFD stands for (Unicode
// "maximal subpart", as Python's errors='replace' and Rust's from_utf8_lossy count). `incomplete`
// is set when more bytes could still complete it.
size_t broken_utf8_length(std::string_view text, bool* incomplete);

// Replaces each broken piece by U+FFFD, as Python's bytes.decode('utf-8', errors='replace') does.
std::string replace_broken_utf8(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalization; linear in the text also for long runs of combining marks.
std::string normalize(std::string_view text, NormalForm form);

}  // namespace graft::text

#include "graft/text/byte_level.h"

#include <array>

#include "graft/text/unicode.h"

namespace graft::text {

namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> chars{};
  std::array<int, 0x144> bytes{};

  ByteAlphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      chars[byte] = printable ? byte : next++;
      bytes[chars[byte]] = static_cast<int>(byte);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet kAlphabet;
  return kAlphabet;
}

}  // namespace

char32_t byte_char(unsigned char byte) { return alphabet().chars[byte]; }

int char_byte(char32_t c) {
  const auto& bytes = alphabet().bytes;
  return c < bytes.size() ? bytes[c] : -1;
}

void append_byte_chars(std::string& out, std::string_view text) {
  const auto& chars = alphabet().chars;
  for (const char c : text) {
    append_utf8(out, chars[static_cast<unsigned char>(c)]);
  }
}

size_t byte_chars_size(std::string_view text) {
  size_t size = 0;
  for (const char c : text) {
    size += byte_char(static_cast<unsigned char>(c)) < 0x80 ? 1 : 2;
  }
  return size;
}

bool append_char_bytes(std::string& out, std::string_view token) {
  const size_t before = out.size();
  for (size_t pos = 0; pos < token.size();) {
    const int byte = char_byte(next_char(token, pos));
    if (byte < 0) {
      out.resize(before);
      return false;
    }
    out += static_cast<char>(byte);
  }
  return true;
}

}  // namespace graft::text

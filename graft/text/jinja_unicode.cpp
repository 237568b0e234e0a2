#include "graft/text/jinja_unicode.h"

#include <algorithm>

#include <utf8proc.h>

namespace graft::text::jinja {

namespace {

utf8proc_category_t category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Lower case of one code point of `text`; a final sigma depends on its neighbours.
char32_t lower_at(std::u32string_view text, size_t i) {
  if (text[i] != 0x3A3) {
    return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(text[i])));
  }
  const bool after = i > 0 && is_alpha(text[i - 1]);
  const bool before = i + 1 < text.size() && is_alpha(text[i + 1]);
  return after && !before ? 0x3C2 : 0x3C3;
}

// Appends what upper case makes of one code point; the common expansions of SpecialCasing.txt.
void append_upper(std::string& out, char32_t code, bool title) {
  if (code == 0xDF) {
    out += title ? "Ss" : "SS";
  } else if (code >= 0xFB00 && code <= 0xFB04) {
    constexpr const char* kUpper[] = {"FF", "FI", "FL", "FFI", "FFL"};
    constexpr const char* kTitle[] = {"Ff", "Fi", "Fl", "Ffi", "Ffl"};
    out += (title ? kTitle : kUpper)[code - 0xFB00];
  } else {
    const auto value = static_cast<utf8proc_int32_t>(code);
    append_code_point(
        out, static_cast<char32_t>(title ? utf8proc_totitle(value) : utf8proc_toupper(value)));
  }
}

void append_lower(std::string& out, std::u32string_view text, size_t i) {
  if (text[i] == 0x130) {
    out += "i\xCC\x87";
    return;
  }
  append_code_point(out, lower_at(text, i));
}

}  // namespace

char32_t next_code_point(std::string_view text, size_t& offset) {
  const auto lead = static_cast<unsigned char>(text[offset++]);
  if (lead < 0x80) {
    return lead;
  }
  int extra = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  char32_t code = lead & (0x3F >> extra);
  while (extra-- > 0 && offset < text.size()) {
    code = (code << 6) | (static_cast<unsigned char>(text[offset++]) & 0x3F);
  }
  return code;
}

void append_code_point(std::string& out, char32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string codes;
  codes.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    codes += next_code_point(text, offset);
  }
  return codes;
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char32_t code : text) {
    append_code_point(out, code);
  }
  return out;
}

bool is_valid_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  auto left = static_cast<utf8proc_ssize_t>(text.size());
  while (left > 0) {
    utf8proc_int32_t code = 0;
    const utf8proc_ssize_t used = utf8proc_iterate(bytes, left, &code);
    if (used <= 0) {
      return false;
    }
    bytes += used;
    left -= used;
  }
  return true;
}

int64_t count_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return !is_continuation(byte); });
}

size_t byte_offset(std::string_view text, int64_t index) {
  size_t offset = 0;
  while (index > 0 && offset < text.size()) {
    do {
      ++offset;
    } while (offset < text.size() && is_continuation(text[offset]));
    --index;
  }
  return offset;
}

bool is_space(char32_t code) {
  if (code < 0x80) {
    return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20);
  }
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_line_break(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
         code == 0x2028 || code == 0x2029;
}

bool is_printable(char32_t code) {
  if (code < 0x80) {
    return code >= 0x20 && code != 0x7F;
  }
  switch (category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_upper(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LL; }
bool is_cased(char32_t code) {
  return is_upper(code) || is_lower(code) || category(code) == UTF8PROC_CATEGORY_LT;
}

bool is_alpha(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }

bool is_digit(char32_t code) {
  return is_decimal(code) || code == 0xB2 || code == 0xB3 || code == 0xB9 || code == 0x2070 ||
         (code >= 0x2074 && code <= 0x2079) || (code >= 0x2080 && code <= 0x2089) ||
         (code >= 0x2460 && code <= 0x2468);
}

bool is_numeric(char32_t code) {
  const auto kind = category(code);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_identifier_start(char32_t code) {
  return code == '_' || is_alpha(code) || category(code) == UTF8PROC_CATEGORY_NL;
}

bool is_identifier_part(char32_t code) {
  const auto kind = category(code);
  return is_identifier_start(code) || kind == UTF8PROC_CATEGORY_ND ||
         kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC ||
         kind == UTF8PROC_CATEGORY_PC;
}

std::string to_upper(std::string_view text) {
  std::string out;
  for (size_t offset = 0; offset < text.size();) {
    append_upper(out, next_code_point(text, offset), /*title=*/false);
  }
  return out;
}

std::string to_lower(std::string_view text) {
  const std::u32string codes = decode_utf8(text);
  std::string out;
  for (size_t i = 0; i < codes.size(); ++i) {
    append_lower(out, codes, i);
  }
  return out;
}

std::string to_title(std::string_view text) {
  const std::u32string codes = decode_utf8(text);
  std::string out;
  bool after_cased = false;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (after_cased) {
      append_lower(out, codes, i);
    } else {
      append_upper(out, codes[i], /*title=*/true);
    }
    after_cased = is_cased(codes[i]);
  }
  return out;
}

std::string to_capitalized(std::string_view text) {
  const std::u32string codes = decode_utf8(text);
  std::string out;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (i == 0) {
      append_upper(out, codes[i], /*title=*/true);
    } else {
      append_lower(out, codes, i);
    }
  }
  return out;
}

std::string swap_case(std::string_view text) {
  const std::u32string codes = decode_utf8(text);
  std::string out;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (is_upper(codes[i])) {
      append_lower(out, codes, i);
    } else if (is_lower(codes[i])) {
      append_upper(out, codes[i], /*title=*/false);
    } else {
      append_code_point(out, codes[i]);
    }
  }
  return out;
}

std::string_view strip(std::string_view text, Side side, const std::string* chars) {
  const std::u32string set = chars != nullptr ? decode_utf8(*chars) : std::u32string();
  auto drops = [&](char32_t code) {
    return chars != nullptr ? set.find(code) != std::u32string::npos : is_space(code);
  };
  size_t begin = 0;
  size_t end = text.size();
  while (side != Side::kRight && begin < end) {
    size_t after = begin;
    if (!drops(next_code_point(text, after))) {
      break;
    }
    begin = after;
  }
  while (side != Side::kLeft && end > begin) {
    size_t start = end - 1;
    while (start > begin && is_continuation(text[start])) {
      --start;
    }
    size_t offset = start;
    if (!drops(next_code_point(text, offset))) {
      break;
    }
    end = start;
  }
  return text.substr(begin, end - begin);
}

}  // namespace graft::text::jinja

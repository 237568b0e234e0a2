#include "graft/text/precompiled_charsmap.h"

#include <cstring>

#include <fmt/format.h>
#include <utf8proc.h>

#include "graft/core/error.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr size_t kMaxGrapheme = 6;  // bytes; longer ones are taken character by character

[[noreturn]] void refuse(const std::string& text) {
  throw FormatError("text.tokenizer", "charsmap", "Precompiled: " + text);
}

std::string decode_base64(std::string_view text) {
  std::string out;
  out.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  int count = 0;
  size_t padding = 0;
  for (const char c : text) {
    int value = -1;
    if (c >= 'A' && c <= 'Z') {
      value = c - 'A';
    } else if (c >= 'a' && c <= 'z') {
      value = c - 'a' + 26;
    } else if (c >= '0' && c <= '9') {
      value = c - '0' + 52;
    } else if (c == '+' || c == '/') {
      value = c == '+' ? 62 : 63;
    } else if (c == '=' && padding < 2) {
      ++padding;
      continue;
    }
    if (value < 0 || padding > 0) {
      refuse("`precompiled_charsmap`: expected base64, got another character");
    }
    bits = bits << 6 | static_cast<uint32_t>(value);
    if (++count == 4) {
      out += {static_cast<char>(bits >> 16), static_cast<char>(bits >> 8), static_cast<char>(bits)};
      bits = 0;
      count = 0;
    }
  }
  if (text.size() % 4 != 0 || count == 1) {
    refuse("`precompiled_charsmap`: expected base64, got a text cut short");
  }
  if (count >= 2) {
    bits <<= 6 * (4 - count);
    out += static_cast<char>(bits >> 16);
    if (count == 3) {
      out += static_cast<char>(bits >> 8);
    }
  }
  return out;
}

bool has_leaf(uint32_t unit) { return ((unit >> 8) & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & ((1U << 31) - 1); }
uint32_t label_of(uint32_t unit) { return unit & ((1U << 31) | 0xFF); }
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }

}  // namespace

PrecompiledCharsmap::PrecompiledCharsmap(std::string_view base64) {
  const std::string blob = decode_base64(base64);
  uint32_t trie_bytes = 0;
  if (blob.size() < 4) {
    refuse(fmt::format("expected a map of at least 4 bytes, got {}", blob.size()));
  }
  std::memcpy(&trie_bytes, blob.data(), 4);
  if (trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes > blob.size() - 4) {
    refuse(fmt::format("expected a trie of whole units within {} bytes, got {} bytes",
                       blob.size() - 4, trie_bytes));
  }
  units_.resize(trie_bytes / 4);
  std::memcpy(units_.data(), blob.data() + 4, trie_bytes);
  replacements_ = blob.substr(4 + trie_bytes);
  if (valid_utf8_prefix(replacements_) != replacements_.size()) {
    refuse("expected replacements in UTF-8, got a broken sequence");
  }
  if (!replacements_.empty() && replacements_.back() != '\0') {
    refuse("expected replacements that end with a zero byte");
  }
  check_leaves();
}

// Visits every unit that a look-up can reach.
void PrecompiledCharsmap::check_leaves() const {
  std::vector<bool> seen(units_.size());
  std::vector<uint32_t> open = {offset_of(units_[0])};
  while (!open.empty()) {
    const uint32_t base = open.back();
    open.pop_back();
    for (uint32_t label = 1; label < 256; ++label) {
      const size_t child = base ^ label;
      if (child >= units_.size() || label_of(units_[child]) != label || seen[child]) {
        continue;
      }
      seen[child] = true;
      const size_t next = child ^ offset_of(units_[child]);
      if (has_leaf(units_[child])) {
        if (next >= units_.size()) {
          refuse("expected leaves inside the trie, got one outside");
        }
        const size_t at = value_of(units_[next]);
        // A replacement begins at the start of a character, so that what it writes is UTF-8.
        if (at >= replacements_.size() ||
            (static_cast<unsigned char>(replacements_[at]) & 0xC0) == 0x80) {
          refuse("expected leaves that point at replacements, got one that points elsewhere");
        }
      }
      open.push_back(static_cast<uint32_t>(next));
    }
  }
}

// The shortest prefix of `part` that the map knows decides, as in the reference.
std::optional<std::string_view> PrecompiledCharsmap::find(std::string_view part) const {
  size_t node = offset_of(units_[0]);
  for (const char c : part) {
    const auto byte = static_cast<unsigned char>(c);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label_of(units_[node]) != byte) {
      return std::nullopt;
    }
    const uint32_t unit = units_[node];
    node ^= offset_of(unit);
    if (has_leaf(unit)) {
      const char* text = replacements_.data() + value_of(units_[node]);
      return std::string_view(text);
    }
  }
  return std::nullopt;
}

std::string PrecompiledCharsmap::apply(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  bool modified = false;
  const auto take = [&](std::string_view part) {
    const auto replacement = find(part);
    if (replacement) {
      modified = true;
      out += *replacement;
    }
    return replacement.has_value();
  };
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    utf8proc_int32_t state = 0;
    auto c = static_cast<utf8proc_int32_t>(next_char(text, pos));
    while (pos < text.size()) {
      size_t after = pos;
      const auto next = static_cast<utf8proc_int32_t>(next_char(text, after));
      // Between two ASCII characters only CR LF holds together.
      const bool apart = c < 0x80 && next < 0x80
                             ? !(c == '\r' && next == '\n')
                             : utf8proc_grapheme_break_stateful(c, next, &state) != 0;
      if (apart) {
        break;
      }
      c = next;
      pos = after;
    }
    const std::string_view grapheme = text.substr(begin, pos - begin);
    if (grapheme.size() < kMaxGrapheme && take(grapheme)) {
      continue;
    }
    for (size_t i = 0; i < grapheme.size();) {
      const size_t start = i;
      next_char(grapheme, i);
      const std::string_view part = grapheme.substr(start, i - start);
      if (!take(part)) {
        out += part;
      }
    }
  }
  return modified ? out : std::string(text);
}

}  // namespace graft::text

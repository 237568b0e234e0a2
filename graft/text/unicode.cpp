#include "graft/text/unicode.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include <utf8proc.h>

#include "graft/text/unicode_tables.h"

namespace graft::text {

namespace detail {

FlagTable::FlagTable() {
  size_t run = 0;
  std::unordered_map<uint32_t, uint16_t> uniform;  // page of one value -> its number
  for (size_t index = 0; index < 0x1100; ++index) {
    const char32_t base = static_cast<char32_t>(index << 8);
    while (run + 1 < kFlagRunsSize && kFlagRuns[run + 1].start <= base) {
      ++run;
    }
    page_of[index] = static_cast<uint16_t>(values.size() >> 8);
    if (run + 1 == kFlagRunsSize || kFlagRuns[run + 1].start >= base + 256) {
      const auto [found, added] = uniform.emplace(kFlagRuns[run].value, page_of[index]);
      page_of[index] = found->second;
      if (!added) {
        continue;
      }
    }
    for (char32_t c = base; c < base + 256; ++c) {
      while (run + 1 < kFlagRunsSize && kFlagRuns[run + 1].start <= c) {
        ++run;
      }
      values += static_cast<char16_t>(kFlagRuns[run].value);
    }
  }
}

const FlagTable kFlagTable;

}  // namespace detail

namespace {

uint32_t run_value(const detail::Run* runs, size_t size, char32_t c) {
  const auto* after =
      std::upper_bound(runs, runs + size, c,
                       [](char32_t value, const detail::Run& run) { return value < run.start; });
  return after == runs ? 0 : (after - 1)->value;
}

constexpr char32_t kHangulBase = 0xAC00;
constexpr char32_t kLeadBase = 0x1100;
constexpr char32_t kVowelBase = 0x1161;
constexpr char32_t kTailBase = 0x11A7;
constexpr char32_t kLeadCount = 19;
constexpr char32_t kVowelCount = 21;
constexpr char32_t kTailCount = 28;
constexpr char32_t kHangulCount = kLeadCount * kVowelCount * kTailCount;

// The composed character of a pair, or 0.
char32_t compose(char32_t first, char32_t second) {
  if (first >= kLeadBase && first < kLeadBase + kLeadCount && second >= kVowelBase &&
      second < kVowelBase + kVowelCount) {
    return kHangulBase + ((first - kLeadBase) * kVowelCount + (second - kVowelBase)) * kTailCount;
  }
  if (first >= kHangulBase && first < kHangulBase + kHangulCount &&
      (first - kHangulBase) % kTailCount == 0 && second > kTailBase &&
      second < kTailBase + kTailCount) {
    return first + (second - kTailBase);
  }
  const auto* end = detail::kCompositions + detail::kCompositionsSize;
  const auto* found = std::lower_bound(detail::kCompositions, end, std::pair(first, second),
                                       [](const detail::Composition& row, const auto& key) {
                                         return std::pair(row.first, row.second) < key;
                                       });
  return found != end && found->first == first && found->second == second ? found->composed : 0;
}

void append_decomposed(std::vector<char32_t>& out, char32_t c, bool compatibility) {
  if (c < 0xA0) {
    out.push_back(c);
    return;
  }
  const auto* skip = compatibility ? detail::kNoCompatibility : detail::kNoCanonical;
  const auto size = compatibility ? detail::kNoCompatibilitySize : detail::kNoCanonicalSize;
  if (std::binary_search(skip, skip + size, c)) {
    out.push_back(c);
    return;
  }
  utf8proc_int32_t parts[32];  // the longest decomposition has 18
  int boundary = 0;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE |
                                                      (compatibility ? UTF8PROC_COMPAT : 0));
  const auto count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 32, options, &boundary);
  out.insert(out.end(), parts, parts + std::clamp<utf8proc_ssize_t>(count, 0, 32));
}

// Sorts each run of combining marks by class, keeping the order within a class.
void order_marks(std::vector<char32_t>& text) {
  std::vector<std::pair<uint8_t, char32_t>> marks;
  for (size_t i = 0; i < text.size();) {
    if (text[i] < 0x300 || combining_class(text[i]) == 0) {
      ++i;
      continue;
    }
    marks.clear();
    size_t end = i;
    for (; end < text.size(); ++end) {
      const auto ccc = combining_class(text[end]);
      if (ccc == 0) {
        break;
      }
      marks.emplace_back(ccc, text[end]);
    }
    std::stable_sort(marks.begin(), marks.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [ccc, mark] : marks) {
      text[i++] = mark;
    }
    i = end;
  }
}

void compose_all(std::vector<char32_t>& text) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  size_t starter = kNone;
  size_t out = 0;
  int last_class = -1;  // class of the last mark kept since the starter; -1 when none
  for (const char32_t c : text) {
    const int ccc = combining_class(c);
    if (starter != kNone && last_class < ccc) {
      if (const char32_t joined = compose(text[starter], c)) {
        text[starter] = joined;
        continue;
      }
    }
    if (ccc == 0) {
      starter = out;
      last_class = -1;
    } else {
      last_class = ccc;
    }
    text[out++] = c;
  }
  text.resize(out);
}

void normalize_piece(std::string& out, std::string_view piece, NormalForm form) {
  std::vector<char32_t> chars;
  const bool compatibility = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  for (size_t pos = 0; pos < piece.size();) {
    append_decomposed(chars, next_char(piece, pos), compatibility);
  }
  order_marks(chars);
  if (form == NormalForm::kNfc || form == NormalForm::kNfkc) {
    compose_all(chars);
  }
  for (const char32_t c : chars) {
    append_utf8(out, c);
  }
}

}  // namespace

uint8_t combining_class(char32_t c) {
  return static_cast<uint8_t>(run_value(detail::kCombiningRuns, detail::kCombiningRunsSize, c));
}

uint16_t script_of(char32_t c) {
  return static_cast<uint16_t>(run_value(detail::kScriptRuns, detail::kScriptRunsSize, c));
}

char32_t to_lower(char32_t c) {
  if (c < 0x80) {
    return c >= 'A' && c <= 'Z' ? c + 32 : c;
  }
  const auto* end = detail::kLowerExceptions + detail::kLowerExceptionsSize;
  const auto* found =
      std::lower_bound(detail::kLowerExceptions, end, c,
                       [](const detail::Run& run, char32_t value) { return run.start < value; });
  if (found != end && found->start == c) {
    return found->value;
  }
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

void append_lower(std::string& out, char32_t c) {
  append_utf8(out, to_lower(c));
  if (c == 0x130) {
    append_utf8(out, 0x307);
  }
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::string to_utf8(char32_t c) {
  std::string out;
  append_utf8(out, c);
  return out;
}

size_t count_chars(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

size_t last_char(std::string_view text) {
  size_t pos = text.size() - 1;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) {
    --pos;
  }
  return pos;
}

size_t broken_utf8_length(std::string_view text, bool* incomplete) {
  *incomplete = false;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 0;
  if (lead < 0x80) {
    return 0;
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
  } else {
    return 1;
  }
  // The second byte's range keeps out overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) {
      *incomplete = true;
      return i;
    }
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) {
      return i;
    }
  }
  return 0;
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (static_cast<unsigned char>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    bool incomplete = false;
    if (broken_utf8_length(text.substr(pos, 4), &incomplete) != 0) {
      break;
    }
    pos += static_cast<size_t>(utf8_length(static_cast<unsigned char>(text[pos])));
  }
  return pos;
}

std::string replace_broken_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t good = valid_utf8_prefix(text);
    out += text.substr(0, good);
    text.remove_prefix(good);
    if (!text.empty()) {
      bool incomplete = false;
      text.remove_prefix(broken_utf8_length(text.substr(0, 4), &incomplete));
      out += "\xEF\xBF\xBD";
    }
  }
  return out;
}

std::string normalize(std::string_view text, NormalForm form) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  // ASCII is in every form, and for NFC so is all that neither changes nor joins its neighbours.
  // Only the stretches between such characters are worked on.
  const bool nfc = form == NormalForm::kNfc;
  size_t copied = 0;  // everything before is in `out`
  size_t last = 0;    // where the last inert character begins: a mark may still join it
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    if (static_cast<unsigned char>(text[pos]) < 0x80) {
      last = begin;
      ++pos;
      continue;
    }
    const char32_t c = next_char(text, pos);
    if (nfc && has_flag(c, kNfcInert)) {
      last = begin;
      continue;
    }
    size_t end = pos;
    while (end < text.size() && static_cast<unsigned char>(text[end]) >= 0x80) {
      size_t after = end;
      if (const char32_t next = next_char(text, after); nfc && has_flag(next, kNfcInert)) {
        break;
      }
      end = after;
    }
    out += text.substr(copied, last - copied);
    normalize_piece(out, text.substr(last, end - last), form);
    copied = last = pos = end;
  }
  out += text.substr(copied);
  return out;
}

}  // namespace graft::text

#include "graft/text/split_pattern.h"

#include <array>

#include "graft/text/json_fields.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The four classes that all known patterns tell apart.
enum Class : uint8_t { kClassOther, kClassLetter, kClassNumber, kClassSpace };

constexpr std::array<Class, 128> ascii_classes() {
  std::array<Class, 128> classes{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    classes[static_cast<size_t>(c)] = letter                 ? kClassLetter
                                      : c >= '0' && c <= '9' ? kClassNumber
                                      : space                ? kClassSpace
                                                             : kClassOther;
  }
  return classes;
}
constexpr auto kAsciiClasses = ascii_classes();

// The class of the character at `pos`, which moves past it.
inline Class next_class(std::string_view text, size_t& pos) {
  const auto lead = static_cast<unsigned char>(text[pos]);
  if (lead < 0x80) {
    ++pos;
    return kAsciiClasses[lead];
  }
  const uint16_t flags = char_flags(next_char(text, pos));
  return (flags & kLetter) != 0   ? kClassLetter
         : (flags & kNumber) != 0 ? kClassNumber
         : (flags & kSpace) != 0  ? kClassSpace
                                  : kClassOther;
}

inline bool is_newline(char c) { return c == '\r' || c == '\n'; }

// The end of the run of `wanted` characters that starts at `pos`, of `most` characters at most.
inline size_t run_end(std::string_view text, size_t pos, Class wanted,
                      size_t most = static_cast<size_t>(-1)) {
  while (pos < text.size() && most-- > 0) {
    size_t after = pos;
    if (next_class(text, after) != wanted) {
      break;
    }
    pos = after;
  }
  return pos;
}

// `\s+(?!\S)|\s+` at a space: all of the run when it ends the text, else all but its last
// character, but at least one.
size_t match_spaces(std::string_view text, size_t begin) {
  const size_t end = run_end(text, begin, kClassSpace);
  if (end == text.size()) {
    return end;
  }
  const size_t last = begin + last_char(text.substr(begin, end - begin));
  return last > begin ? last : end;
}

// 's 't 're 've 'm 'll 'd after an apostrophe at `begin`; 0 when there is none. Without case, s is
// also U+017F.
size_t match_contraction(std::string_view text, size_t begin, bool any_case) {
  if (begin + 1 >= text.size()) {
    return 0;
  }
  const auto at = [&](size_t i) -> char {
    if (i >= text.size()) {
      return '\0';
    }
    const char c = text[i];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  switch (at(begin + 1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return begin + 2;
    case 'r':
    case 'v':
      return at(begin + 2) == 'e' ? begin + 3 : 0;
    case 'l':
      return at(begin + 2) == 'l' ? begin + 3 : 0;
    case '\xC5':
      return any_case && at(begin + 2) == '\xBF' ? begin + 3 : 0;
    default:
      return 0;
  }
}

size_t match_gpt2(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    if (const size_t end = match_contraction(text, begin, false)) {
      return end;
    }
  }
  size_t pos = begin;
  Class kind = next_class(text, pos);
  if (text[begin] == ' ' && pos < text.size()) {
    size_t after = pos;
    const Class next = next_class(text, after);
    if (next != kClassSpace) {
      kind = next;
      pos = after;
    }
  }
  return kind == kClassSpace ? match_spaces(text, begin) : run_end(text, pos, kind);
}

size_t match_cl100k(std::string_view text, size_t begin, size_t most_digits) {
  const char first = text[begin];
  if (first == '\'') {
    if (const size_t end = match_contraction(text, begin, true)) {
      return end;
    }
  }
  size_t pos = begin;
  const Class kind = next_class(text, pos);
  if (kind == kClassLetter) {
    return run_end(text, pos, kClassLetter);
  }
  if (kind == kClassNumber) {
    return run_end(text, begin, kClassNumber, most_digits);
  }
  const auto with_newlines = [&](size_t end) {
    while (end < text.size() && is_newline(text[end])) {
      ++end;
    }
    return end;
  };
  if (!is_newline(first) && pos < text.size()) {
    size_t after = pos;
    const Class next = next_class(text, after);
    if (next == kClassLetter) {
      return run_end(text, after, kClassLetter);
    }
    if (first == ' ' && next == kClassOther) {
      return with_newlines(run_end(text, after, kClassOther));
    }
  }
  if (kind == kClassOther) {
    return with_newlines(run_end(text, pos, kClassOther));
  }
  const size_t end = run_end(text, begin, kClassSpace);
  for (size_t i = end; i > begin; --i) {
    if (is_newline(text[i - 1])) {
      return i;
    }
  }
  return match_spaces(text, begin);
}

}  // namespace

std::string_view known_regex(KnownPattern pattern) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return kGpt2Regex;
    case KnownPattern::kLlama3:
      return kLlama3Regex;
    default:
      return kQwen2Regex;
  }
}

size_t match_known(KnownPattern pattern, std::string_view text, size_t begin) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return match_gpt2(text, begin);
    case KnownPattern::kLlama3:
      return match_cl100k(text, begin, 3);
    default:
      return match_cl100k(text, begin, 1);
  }
}

SplitPattern SplitPattern::regex(std::string_view pattern) {
  SplitPattern split;
  for (const auto known : {KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2}) {
    if (pattern == known_regex(known)) {
      split.pattern_ = known;
      return split;
    }
  }
  split.pattern_.emplace<Regex>(pattern);
  return split;
}

SplitPattern SplitPattern::literal(std::string_view text) {
  SplitPattern split;
  split.pattern_.emplace<std::string>(text);
  return split;
}

SplitPattern SplitPattern::chars(bool (*holds)(char32_t)) {
  SplitPattern split;
  split.pattern_ = holds;
  return split;
}

std::optional<KnownPattern> SplitPattern::known() const {
  const auto* found = std::get_if<KnownPattern>(&pattern_);
  return found != nullptr ? std::optional(*found) : std::nullopt;
}

size_t SplitPattern::char_length(char lead) {
  return static_cast<size_t>(utf8_length(static_cast<unsigned char>(lead)));
}

bool SplitPattern::find(std::string_view text, size_t from, size_t* begin, size_t* end) const {
  if (const auto* known = std::get_if<KnownPattern>(&pattern_)) {
    if (from >= text.size()) {
      return false;
    }
    *begin = from;
    *end = match_known(*known, text, from);
    return true;
  }
  if (const auto* regex = std::get_if<Regex>(&pattern_)) {
    return regex->find(text, from, begin, end);
  }
  if (const auto* literal = std::get_if<std::string>(&pattern_)) {
    *begin = text.find(*literal, from);
    *end = *begin + literal->size();
    return *begin != std::string_view::npos;
  }
  const Chars holds = std::get<Chars>(pattern_);
  for (size_t pos = from; pos < text.size();) {
    *begin = pos;
    if (holds(next_char(text, pos))) {
      *end = pos;
      return true;
    }
  }
  return false;
}

void SplitPattern::split(std::string_view text, SplitBehavior behavior, bool invert, size_t offset,
                         std::vector<Piece>& out) const {
  if (text.empty()) {
    return;
  }
  if (const auto* known = std::get_if<KnownPattern>(&pattern_);
      known != nullptr &&
      (behavior == SplitBehavior::kIsolated || (behavior == SplitBehavior::kRemoved && invert))) {
    for (size_t pos = 0; pos < text.size();) {
      const size_t end = match_known(*known, text, pos);
      out.push_back({offset + pos, offset + end});
      pos = end;
    }
    return;
  }
  struct Match {
    size_t begin;
    size_t end;
    bool matched;
  };
  std::vector<Match> matches;
  each(text, [&](size_t begin, size_t end, bool matched) {
    matches.push_back({begin, end, matched != invert});
  });
  const auto emit = [&](size_t begin, size_t end) {
    if (begin != end) {
      out.push_back({offset + begin, offset + end});
    }
  };
  const size_t first = out.size();
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      for (const Match& match : matches) {
        if (behavior == SplitBehavior::kIsolated || !match.matched) {
          emit(match.begin, match.end);
        }
      }
      return;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious:
      for (const Match& match : matches) {
        const bool join = behavior == SplitBehavior::kContiguous ? match.matched == previous
                                                                 : match.matched && !previous;
        if (join && out.size() > first) {
          out.back().end = offset + match.end;
        } else {
          emit(match.begin, match.end);
        }
        previous = match.matched;
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = 0; i < matches.size(); ++i) {
        // A match joins what follows it, unless that is a match too.
        if (matches[i].matched && i + 1 < matches.size() && !matches[i + 1].matched) {
          emit(matches[i].begin, matches[i + 1].end);
          ++i;
        } else {
          emit(matches[i].begin, matches[i].end);
        }
      }
      return;
  }
}

SplitPattern split_pattern_field(const JsonView& pattern, std::string_view component) {
  if (pattern.size() == 1) {
    if (const auto text = pattern.find("String")) {
      return SplitPattern::literal(text->text("String"));
    }
    if (const auto text = pattern.find("Regex")) {
      return SplitPattern::regex(text->text("Regex"));
    }
  }
  refuse_tokenizer(
      "field-type",
      fmt::format("{}: `pattern`: expected {{\"String\": …}} or {{\"Regex\": …}}", component));
}

}  // namespace graft::text

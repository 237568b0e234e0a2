// What cuts a text into pieces: a regular expression, a fixed text, a class of characters, or one
// of the well-known patterns of byte-level tokenizers, which are matched by hand for speed.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "graft/text/json_view.h"
#include "graft/text/regex.h"

namespace graft::text {

struct Piece {
  size_t begin;
  size_t end;
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// The patterns that are matched by hand. All of them match at every place of every text.
enum class KnownPattern { kGpt2, kLlama3, kQwen2 };

// The regular expression that a known pattern stands for.
std::string_view known_regex(KnownPattern pattern);

// The end of the match that begins at `begin` of valid UTF-8 (begin < text.size()).
size_t match_known(KnownPattern pattern, std::string_view text, size_t begin);

class SplitPattern {
 public:
  // Recognises the known patterns; others are compiled. Throws as Regex does.
  static SplitPattern regex(std::string_view pattern);
  static SplitPattern literal(std::string_view text);
  // Single characters for which the function holds.
  static SplitPattern chars(bool (*holds)(char32_t));

  std::optional<KnownPattern> known() const;

  // Calls fn(begin, end, is_match) for the matches and the stretches between them, which together
  // cover the text.
  template <typename Fn>
  void each(std::string_view text, Fn&& fn) const {
    size_t previous = 0;
    size_t from = 0;
    std::optional<size_t> last_end;
    size_t begin = 0;
    size_t end = 0;
    while (!text.empty() && from <= text.size() && find(text, from, &begin, &end)) {
      // No empty match right behind a match: that would never end.
      if (begin == end && last_end == end) {
        from += from < text.size() ? char_length(text[from]) : 1;
        continue;
      }
      if (previous != begin) {
        fn(previous, begin, false);
      }
      fn(begin, end, true);
      previous = from = end;
      last_end = end;
    }
    if (previous != text.size()) {
      fn(previous, text.size(), false);
    }
  }

  // Appends the pieces that remain of text[0, size) to `out`, moved by `offset`.
  void split(std::string_view text, SplitBehavior behavior, bool invert, size_t offset,
             std::vector<Piece>& out) const;

 private:
  using Chars = bool (*)(char32_t);
  static size_t char_length(char lead);
  bool find(std::string_view text, size_t from, size_t* begin, size_t* end) const;

  std::variant<KnownPattern, Regex, std::string, Chars> pattern_;
};

// Reads `{"String": …}` or `{"Regex": …}`, the field `pattern` of a component.
SplitPattern split_pattern_field(const JsonView& pattern, std::string_view component);

}  // namespace graft::text

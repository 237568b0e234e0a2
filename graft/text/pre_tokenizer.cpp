#include "graft/text/pre_tokenizer.h"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "graft/text/byte_level.h"
#include "graft/text/json_fields.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kRole = "pre_tokenizer";
constexpr std::string_view kKnown =
    "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, FixedLength, Metaspace, Punctuation, "
    "Sequence, Split, UnicodeScripts, Whitespace, WhitespaceSplit";

// Cuts each piece: fn(text, offset, out) appends what becomes of it.
template <typename Fn>
void cut_pieces(PreTokenized& words, Fn&& fn) {
  words.spare.clear();
  for (const Piece& piece : words.pieces) {
    fn(words.view(piece), piece.begin, words.spare);
  }
  words.pieces.swap(words.spare);
}

// Rewrites each piece: fn(out, text, offset) appends its new text.
template <typename Fn>
void rewrite_pieces(PreTokenized& words, Fn&& fn) {
  std::string out;
  out.reserve(words.text.size() + words.pieces.size() * 4);
  size_t origin = 0;
  for (Piece& piece : words.pieces) {
    const bool at_origin = piece.begin < words.origin;
    const size_t begin = out.size();
    fn(out, words.view(piece), piece.begin);
    piece = {begin, out.size()};
    // Exact for the first piece, which is all that a later step can ask for.
    if (at_origin && begin == 0 && !out.empty()) {
      origin = static_cast<size_t>(utf8_length(static_cast<unsigned char>(out[0])));
    }
  }
  words.storage = std::move(out);
  words.text = words.storage;
  words.origin = origin;
}

class Split : public PreTokenizer {
 public:
  Split(SplitPattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(PreTokenized& words) const override {
    cut_pieces(words, [this](std::string_view text, size_t offset, std::vector<Piece>& out) {
      pattern_.split(text, behavior_, invert_, offset, out);
    });
  }

 private:
  SplitPattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex)
      : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}

  bool writes_bytes() const override { return true; }
  void keep_bytes() override { keep_bytes_ = true; }

  void apply(PreTokenized& words) const override {
    if (add_prefix_space_) {
      rewrite_pieces(words, [](std::string& out, std::string_view text, size_t) {
        out += text.starts_with(' ') ? "" : " ";
        out += text;
      });
    }
    if (use_regex_) {
      cut_pieces(words, [](std::string_view text, size_t offset, std::vector<Piece>& out) {
        for (size_t pos = 0; pos < text.size();) {
          const size_t end = match_known(KnownPattern::kGpt2, text, pos);
          out.push_back({offset + pos, offset + end});
          pos = end;
        }
      });
    }
    if (!keep_bytes_) {
      rewrite_pieces(words, [](std::string& out, std::string_view text, size_t) {
        append_byte_chars(out, text);
      });
    }
  }

 private:
  bool add_prefix_space_;
  bool use_regex_;
  bool keep_bytes_ = false;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };

  Metaspace(char32_t replacement, Prepend prepend, bool split)
      : replacement_(to_utf8(replacement)), prepend_(prepend), split_(split) {}

  void apply(PreTokenized& words) const override {
    const size_t first = words.origin;
    rewrite_pieces(words, [&](std::string& out, std::string_view text, size_t offset) {
      const bool marked = text.starts_with(' ') || text.starts_with(replacement_);
      if (!marked &&
          (prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && offset < first))) {
        out += replacement_;
      }
      for (size_t pos = 0;;) {
        const size_t space = text.find(' ', pos);
        out += text.substr(pos, space - pos);
        if (space == std::string_view::npos) {
          break;
        }
        out += replacement_;
        pos = space + 1;
      }
    });
    if (split_) {
      cut_pieces(words, [this](std::string_view text, size_t offset, std::vector<Piece>& out) {
        cut(text, offset, out);
      });
    }
  }

 private:
  // A mark belongs to what follows it; of several in a row each but the last is a word.
  void cut(std::string_view text, size_t offset, std::vector<Piece>& out) const {
    for (size_t begin = 0; begin < text.size();) {
      const size_t from = text.substr(begin).starts_with(replacement_) ? replacement_.size() : 0;
      const size_t end = std::min(text.find(replacement_, begin + from), text.size());
      out.push_back({offset + begin, offset + end});
      begin = end;
    }
  }

  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

// \w+|[^\w\s]+, the rest dropped.
class Whitespace : public PreTokenizer {
 public:
  void apply(PreTokenized& words) const override {
    cut_pieces(words, [](std::string_view text, size_t offset, std::vector<Piece>& out) {
      int last = 0;  // 0 space, 1 word, 2 other
      for (size_t pos = 0; pos < text.size();) {
        const size_t begin = pos;
        const uint16_t flags = char_flags(next_char(text, pos));
        const int kind = (flags & kWord) != 0 ? 1 : (flags & kSpace) != 0 ? 0 : 2;
        if (kind != 0 && kind == last) {
          out.back().end = offset + pos;
        } else if (kind != 0) {
          out.push_back({offset + begin, offset + pos});
        }
        last = kind;
      }
    });
  }
};

class FixedLength : public PreTokenizer {
 public:
  explicit FixedLength(size_t length) : length_(length) {}
  void apply(PreTokenized& words) const override {
    cut_pieces(words, [this](std::string_view text, size_t offset, std::vector<Piece>& out) {
      for (size_t pos = 0; pos < text.size();) {
        const size_t begin = pos;
        for (size_t i = 0; i < length_ && pos < text.size(); ++i) {
          next_char(text, pos);
        }
        out.push_back({offset + begin, offset + pos});
      }
    });
  }

 private:
  size_t length_;
};

// Han, Hiragana and Katakana count as one script; spaces and unknown characters as any.
class UnicodeScripts : public PreTokenizer {
 public:
  void apply(PreTokenized& words) const override {
    cut_pieces(words, [](std::string_view text, size_t offset, std::vector<Piece>& out) {
      constexpr int kNone = -1;
      int last = kNone;
      size_t begin = std::string_view::npos;
      for (size_t pos = 0; pos < text.size();) {
        const size_t start = pos;
        const int script = fixed_script(next_char(text, pos));
        if (script != 0 && last != 0 && last != script) {
          if (begin != std::string_view::npos) {
            out.push_back({offset + begin, offset + start});
          }
          begin = start;
        }
        last = script != 0 ? script : last;
      }
      if (begin != std::string_view::npos) {
        out.push_back({offset + begin, offset + text.size()});
      }
    });
  }

 private:
  static int fixed_script(char32_t c) {
    static const int kHan = script_of(0x4E00);
    static const int kHiragana = script_of(0x3042);
    static const int kKatakana = script_of(0x30A2);
    if (c == ' ') {
      return 0;
    }
    const int script = script_of(c);
    return c == 0x30FC || script == kHiragana || script == kKatakana ? kHan : script;
  }
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void apply(PreTokenized& words) const override {
    for (const auto& part : parts_) {
      part->apply(words);
    }
  }
  bool writes_bytes() const override { return !parts_.empty() && parts_.back()->writes_bytes(); }
  void keep_bytes() override { parts_.back()->keep_bytes(); }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

SplitBehavior behavior_field(const JsonView& json, std::string_view component,
                             std::optional<SplitBehavior> fallback) {
  const auto field = json.find("behavior");
  if (!field && fallback) {
    return *fallback;
  }
  const std::string_view text = required_field(json, component, "behavior").text("behavior");
  const std::pair<std::string_view, SplitBehavior> known[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [name, behavior] : known) {
    if (text == name) {
      return behavior;
    }
  }
  refuse_tokenizer("field-range",
                   fmt::format("{}: `behavior`: expected Removed, Isolated, MergedWithPrevious, "
                               "MergedWithNext or Contiguous, got `{}`",
                               component, text));
}

std::unique_ptr<PreTokenizer> make_metaspace(const JsonView& json) {
  auto prepend = Metaspace::Prepend::kAlways;
  if (const auto scheme = json.find("prepend_scheme"); scheme && !scheme->is_null()) {
    const std::string_view text = scheme->text("prepend_scheme");
    if (text != "always" && text != "first" && text != "never") {
      refuse_tokenizer("field-range", fmt::format("Metaspace: `prepend_scheme`: expected always, "
                                                  "first or never, got `{}`",
                                                  text));
    }
    prepend = text == "always"  ? Metaspace::Prepend::kAlways
              : text == "first" ? Metaspace::Prepend::kFirst
                                : Metaspace::Prepend::kNever;
  }
  if (!bool_field(json, "add_prefix_space", true)) {
    if (json.find("prepend_scheme") && prepend != Metaspace::Prepend::kNever) {
      refuse_tokenizer("field-range",
                       "Metaspace: `add_prefix_space` is false: expected `prepend_scheme` never");
    }
    prepend = Metaspace::Prepend::kNever;
  }
  return std::make_unique<Metaspace>(char_field(json, "Metaspace", "replacement"), prepend,
                                     bool_field(json, "split", true));
}

bool is_space(char32_t c) { return has_flag(c, kSpace); }
bool is_punctuation(char32_t c) { return has_flag(c, kPunctuation); }
bool is_numeric(char32_t c) { return has_flag(c, kNumeric); }

std::unique_ptr<PreTokenizer> split_by(bool (*holds)(char32_t), SplitBehavior behavior) {
  return std::make_unique<Split>(SplitPattern::chars(holds), behavior, false);
}

std::unique_ptr<PreTokenizer> make_bert() {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  parts.push_back(split_by(is_space, SplitBehavior::kRemoved));
  parts.push_back(split_by(is_punctuation, SplitBehavior::kIsolated));
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<PreTokenizer> make_sequence(const JsonView& json) {
  const JsonView list = required_field(json, "Sequence", "pretokenizers");
  if (!list.is_array()) {
    refuse_tokenizer("field-type", "Sequence: `pretokenizers`: expected a list, got another kind");
  }
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  list.each([&](const JsonView& part) { parts.push_back(make_pre_tokenizer(part)); });
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<PreTokenizer> make_split(const JsonView& json) {
  return std::make_unique<Split>(
      split_pattern_field(required_field(json, "Split", "pattern"), "Split"),
      behavior_field(json, "Split", std::nullopt), bool_field(json, "invert", false));
}

std::unique_ptr<PreTokenizer> make_delimiter(const JsonView& json) {
  const char32_t delimiter = char_field(json, "CharDelimiterSplit", "delimiter");
  return std::make_unique<Split>(SplitPattern::literal(to_utf8(delimiter)), SplitBehavior::kRemoved,
                                 false);
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonView& json) {
  const std::string_view type = component_type(json, kRole);
  if (type == "Sequence") {
    return make_sequence(json);
  }
  if (type == "Split") {
    return make_split(json);
  }
  if (type == "ByteLevel") {
    return std::make_unique<ByteLevel>(bool_field(json, "add_prefix_space", true),
                                       bool_field(json, "use_regex", true));
  }
  if (type == "Metaspace") {
    return make_metaspace(json);
  }
  if (type == "Digits") {
    return split_by(is_numeric, bool_field(json, "individual_digits", false)
                                    ? SplitBehavior::kIsolated
                                    : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    return split_by(is_punctuation, behavior_field(json, type, SplitBehavior::kIsolated));
  }
  if (type == "BertPreTokenizer") {
    return make_bert();
  }
  if (type == "Whitespace") {
    return std::make_unique<Whitespace>();
  }
  if (type == "WhitespaceSplit") {
    return split_by(is_space, SplitBehavior::kRemoved);
  }
  if (type == "CharDelimiterSplit") {
    return make_delimiter(json);
  }
  if (type == "UnicodeScripts") {
    return std::make_unique<UnicodeScripts>();
  }
  if (type == "FixedLength") {
    const int64_t length =
        json.find("length") ? integer_field(json, type, "length", 1, int64_t{1} << 30) : 5;
    return std::make_unique<FixedLength>(static_cast<size_t>(length));
  }
  unknown_component(kRole, type, kKnown);
}

std::unique_ptr<PreTokenizer> make_split_pre_tokenizer(SplitPattern pattern) {
  return std::make_unique<Split>(std::move(pattern), SplitBehavior::kIsolated, false);
}

std::unique_ptr<PreTokenizer> make_byte_level_pre_tokenizer(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevel>(add_prefix_space, use_regex);
}

std::unique_ptr<PreTokenizer> make_digits_pre_tokenizer() {
  return split_by(is_numeric, SplitBehavior::kIsolated);
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(
    std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace graft::text

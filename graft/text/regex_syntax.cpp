// Oniguruma's spelling of regular expressions into PCRE2's. The differences that matter: \s, \w and
// \b follow other definitions, \h is a hexadecimal digit, script names mean the script itself, and
// character classes may nest and intersect.
#include <array>
#include <cctype>
#include <string>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/text/regex.h"
#include "graft/text/regex_tables.h"

namespace graft::text {

namespace {

constexpr std::string_view kSpaceSet = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::array kWordProperties = {"Alphabetic", "M", "Nd", "Pc"};
constexpr std::string_view kHexSet = "0-9A-Fa-f";

// Whether a row of the table belongs to what `\p{name}` asks for. A category of one letter holds all
// that begin with it, `L&` the cased letters.
bool is_of(std::string_view row, std::string_view name) {
  if (name == "L&") {
    return row == "Lu" || row == "Ll" || row == "Lt";
  }
  return row == name || (name.size() == 1 && row.size() == 2 && row[0] == name[0]);
}

// The members of a property that PCRE2 may be too old to know, as ranges of a class.
std::string young_members(std::string_view name) {
  std::string ranges;
  for (size_t i = 0; i < detail::kYoungRangesSize; ++i) {
    const auto& [property, first, last] = detail::kYoungRanges[i];
    if (is_of(property, name)) {
      ranges += first == last
                    ? fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(first))
                    : fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<uint32_t>(first),
                                  static_cast<uint32_t>(last));
    }
  }
  return ranges;
}

// What `\w` stands for, as members of a class.
const std::string& word_set() {
  static const std::string set = [] {
    std::string members;
    for (const char* property : kWordProperties) {
      members += fmt::format("\\p{{{}}}{}", property, young_members(property));
    }
    return members;
  }();
  return set;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        set();
      } else if (c == '(' && in_.substr(pos_, 2) == "(?") {
        options();
      } else if (c == '{' && !quantifier()) {
        out_ += "\\{";
        ++pos_;
      } else if (c == '{') {
        interval();
      } else {
        out_ += c;
        ++pos_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw FormatError(
        "text.tokenizer", "regex",
        fmt::format("`{}`: at offset {}: expected a pattern that PCRE2 can follow, got {}",
                    in_.substr(0, 200), pos_, what));
  }

  bool quantifier() const {
    size_t i = pos_ + 1;
    bool digit = false;
    for (; i < in_.size() && (std::isdigit(static_cast<unsigned char>(in_[i])) || in_[i] == ',');
         ++i) {
      digit |= in_[i] != ',';
    }
    return digit && i < in_.size() && in_[i] == '}';
  }

  // `{,n}` is {0,n}; a `+` after an interval repeats it, where PCRE2 would make it possessive.
  void interval() {
    const size_t end = in_.find('}', pos_);
    const std::string_view body = in_.substr(pos_ + 1, end - pos_ - 1);
    out_ += fmt::format("{{{}{}}}", body.front() == ',' ? "0" : "", body);
    pos_ = end + 1;
    if (pos_ < in_.size() && in_[pos_] == '+') {
      refuse("an interval followed by `+`");
    }
  }

  // `(?m` means another thing here and there, `(?x` changes the rules of this translation.
  void options() {
    size_t end = pos_ + 2;
    while (end < in_.size() &&
           (std::isalpha(static_cast<unsigned char>(in_[end])) || in_[end] == '-')) {
      ++end;
    }
    const std::string_view letters = in_.substr(pos_ + 2, end - pos_ - 2);
    if (letters.find_first_not_of("i-") != std::string_view::npos) {
      refuse(fmt::format("the option `{}`", letters));
    }
    out_ += in_.substr(pos_, end - pos_);
    pos_ = end;
  }

  void property(bool in_set) {
    const size_t close = in_.find('}', pos_);
    if (pos_ + 2 >= in_.size() || in_[pos_ + 2] != '{' || close == std::string_view::npos) {
      refuse("`\\p` without a name in braces");
    }
    bool negative = in_[pos_ + 1] == 'P';
    std::string name(in_.substr(pos_ + 3, close - pos_ - 3));
    if (name.starts_with('^')) {
      negative = !negative;
      name.erase(0, 1);
    }
    // A category has one or two letters, `L&` included; the properties below go by their own name.
    static constexpr std::array kPlain = {"Alphabetic", "Lowercase",   "Uppercase",
                                          "Any",        "White_Space", "Emoji"};
    bool plain = name.size() <= 2;
    for (const char* known : kPlain) {
      plain |= name == known;
    }
    if (name == "Letter" || name == "Number" || name == "Punctuation" || name == "Mark" ||
        name == "Symbol" || name == "Separator") {
      name = name.substr(0, 1);
      plain = true;
    }
    const std::string young = young_members(name);
    const std::string spelled = plain ? name : "sc:" + name;
    if (in_set && negative && !young.empty()) {
      // A class has no way to leave characters out that its other members let in.
      refuse(fmt::format("`\\P{{{}}}` inside a class", name));
    }
    if (in_set || young.empty()) {
      out_ += fmt::format("\\{}{{{}}}{}", negative ? 'P' : 'p', spelled, young);
    } else {
      out_ += fmt::format("[{}\\p{{{}}}{}]", negative ? "^" : "", spelled, young);
    }
    pos_ = close + 1;
  }

  void escape(bool in_set) {
    if (pos_ + 1 >= in_.size()) {
      refuse("a lone backslash");
    }
    const char c = in_[pos_ + 1];
    const auto emit = [&](std::string_view members, bool negative) {
      if (in_set && negative) {
        refuse(fmt::format("`\\{}` inside a class", c));
      }
      out_ += in_set ? std::string(members) : fmt::format("[{}{}]", negative ? "^" : "", members);
      pos_ += 2;
    };
    switch (c) {
      case 's':
        return emit(kSpaceSet, false);
      case 'S':
        if (in_set) {
          out_ += "\\S\\x{180E}";
          pos_ += 2;
          return;
        }
        return emit(kSpaceSet, true);
      case 'w':
        return emit(word_set(), false);
      case 'W':
        return emit(word_set(), true);
      case 'h':
        return emit(kHexSet, false);
      case 'H':
        return emit(kHexSet, true);
      case 'p':
      case 'P':
        return property(in_set);
      case 'b':
      case 'B':
        if (in_set) {
          out_ += "\\x08";
        } else {
          const std::string w = fmt::format("[{}]", word_set());
          out_ += c == 'b' ? fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", w)
                           : fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", w);
        }
        pos_ += 2;
        return;
      case 'u':
        unicode_escape();
        return;
      case 'y':
      case 'Y':
      case 'M':
      case 'C':
      case 'c':
      case 'K':
      case 'g':
      case 'k':
        refuse(fmt::format("`\\{}`", c));
      default:
        out_ += in_.substr(pos_, 2);
        pos_ += 2;
    }
  }

  void unicode_escape() {
    const std::string_view digits = in_.substr(pos_ + 2, 4);
    for (const char d : digits) {
      if (!std::isxdigit(static_cast<unsigned char>(d))) {
        refuse("`\\u` without four hexadecimal digits");
      }
    }
    if (digits.size() < 4) {
      refuse("`\\u` without four hexadecimal digits");
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    pos_ += 6;
  }

  void set() {
    out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == '^') {
      out_ += in_[pos_++];
    }
    bool first = true;
    for (; pos_ < in_.size(); first = false) {
      const char c = in_[pos_];
      if (c == ']' && !first) {
        out_ += c;
        ++pos_;
        return;
      }
      if (c == '[' && in_.substr(pos_, 2) == "[:") {
        const size_t end = in_.find(":]", pos_);
        if (end == std::string_view::npos) {
          refuse("an unfinished POSIX class");
        }
        out_ += in_.substr(pos_, end + 2 - pos_);
        pos_ = end + 2;
      } else if (c == '[') {
        refuse("a class inside a class");
      } else if (in_.substr(pos_, 2) == "&&") {
        refuse("an intersection of classes");
      } else if (c == '\\') {
        escape(true);
      } else {
        out_ += c;
        ++pos_;
      }
    }
    refuse("an unfinished class");
  }

  std::string_view in_;
  std::string out_;
  size_t pos_ = 0;
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace graft::text

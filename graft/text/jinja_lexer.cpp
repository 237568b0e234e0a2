#include "graft/text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

#include <fmt/format.h>

#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

[[noreturn]] void fail(Position at, std::string message) {
  throw Fault{"syntax", std::move(message), {}, at, {}};
}

// Line ends become `\n`; one at the very end is dropped (keep_trailing_newline is off).
std::string normalize_newlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n' ? 1 : 0;
    } else {
      text += source[i];
    }
  }
  if (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return text;
}

bool is_digit_of(char c, int base) {
  const int lower = std::tolower(static_cast<unsigned char>(c));
  if (base == 16 && lower >= 'a' && lower <= 'f') {
    return true;
  }
  return c >= '0' && c < '0' + std::min(base, 10);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(normalize_newlines(source)) {
    line_starts_.push_back(0);
    for (size_t i = 0; i < text_.size(); ++i) {
      if (text_[i] == '\n') {
        line_starts_.push_back(i + 1);
      }
    }
  }

  std::vector<Token> run() {
    while (offset_ < text_.size()) {
      read_data();
    }
    push(TokenKind::kEnd, {}, offset_);
    return std::move(tokens_);
  }

 private:
  // Counts on from the last position asked for: a template may be one line of a megabyte.
  Position position(size_t offset) const {
    const auto next = std::upper_bound(line_starts_.begin(), line_starts_.end(), offset);
    const size_t line = static_cast<size_t>(next - line_starts_.begin());
    if (line != known_.line || offset < known_offset_) {
      known_ = {static_cast<uint32_t>(line), 1};
      known_offset_ = line_starts_[line - 1];
    }
    known_.column += static_cast<uint32_t>(
        count_code_points(std::string_view(text_).substr(known_offset_, offset - known_offset_)));
    known_offset_ = offset;
    return known_;
  }

  void push(TokenKind kind, std::string text, size_t offset) {
    tokens_.push_back({kind, std::move(text), position(offset)});
  }

  char peek(size_t ahead = 0) const {
    return offset_ + ahead < text_.size() ? text_[offset_ + ahead] : '\0';
  }
  bool starts_with(std::string_view prefix, size_t offset) const {
    return std::string_view(text_).substr(offset, prefix.size()) == prefix;
  }
  size_t skip_space(size_t offset) const {
    while (offset < text_.size()) {
      size_t after = offset;
      if (!is_space(next_code_point(text_, after))) {
        break;
      }
      offset = after;
    }
    return offset;
  }

  // The end of `{%- raw -%}` beginning at `offset`, none if something else begins there.
  std::optional<size_t> match_word_tag(size_t offset, std::string_view word, bool end_tag) const {
    size_t at = offset + 2;
    at += at < text_.size() && (text_[at] == '-' || text_[at] == '+') ? 1 : 0;
    at = skip_space(at);
    if (!starts_with(word, at)) {
      return std::nullopt;
    }
    at = skip_space(at + word.size());
    if (starts_with("-%}", at)) {
      return skip_space(at + 3);
    }
    if (end_tag && starts_with("+%}", at)) {
      return at + 3;
    }
    if (!starts_with("%}", at)) {
      return std::nullopt;
    }
    at += 2;
    return end_tag && at < text_.size() && text_[at] == '\n' ? at + 1 : at;
  }

  // What is left of data before a tag whose sign stands at `sign`.
  std::string_view strip_before(std::string_view data, char sign, bool variable) const {
    if (sign == '-') {
      return strip(data, Side::kRight);
    }
    if (sign == '+' || variable) {
      return data;
    }
    const size_t newline = data.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    const std::string_view tail = data.substr(line);
    const bool blank = !tail.empty() && strip(tail, Side::kBoth).empty();
    return (line > 0 || line_starting_) && blank ? data.substr(0, line) : data;
  }

  void push_data(std::string_view data, size_t offset) {
    if (!data.empty()) {
      push(TokenKind::kData, std::string(data), offset);
    }
  }

  void moved(size_t begin) { line_starting_ = offset_ > begin && text_[offset_ - 1] == '\n'; }

  void read_data() {
    const size_t begin = offset_;
    size_t tag = begin;
    while (true) {
      tag = text_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= text_.size()) {
        push_data(std::string_view(text_).substr(begin), begin);
        offset_ = text_.size();
        return;
      }
      const char second = text_[tag + 1];
      if (second == '{' || second == '%' || second == '#') {
        break;
      }
      ++tag;
    }
    const char second = text_[tag + 1];
    const char after = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    const char sign = after == '-' || after == '+' ? after : '\0';
    push_data(strip_before(std::string_view(text_).substr(begin, tag - begin), sign, second == '{'),
              begin);
    if (second == '%') {
      if (const auto end = match_word_tag(tag, "raw", /*end_tag=*/false)) {
        offset_ = *end;
        moved(tag);
        read_raw(tag);
        return;
      }
    }
    offset_ = tag + 2 + (sign != '\0' ? 1 : 0);
    moved(tag);
    if (second == '#') {
      read_comment(tag);
      return;
    }
    push(second == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, {}, tag);
    read_code(tag, second == '{');
  }

  void read_comment(size_t tag) {
    const size_t end = text_.find("#}", offset_);
    if (end == std::string::npos) {
      fail(position(tag), "comment: expected `#}`, got the end of the template");
    }
    const char sign = end > offset_ ? text_[end - 1] : '\0';
    offset_ = end + 2;
    if (sign == '-') {
      offset_ = skip_space(offset_);
    } else if (sign != '+' && peek() == '\n') {
      ++offset_;
    }
    moved(tag);
  }

  void read_raw(size_t tag) {
    const size_t begin = offset_;
    for (size_t at = text_.find("{%", begin); at != std::string::npos;
         at = text_.find("{%", at + 1)) {
      const auto end = match_word_tag(at, "endraw", /*end_tag=*/true);
      if (!end) {
        continue;
      }
      const char after = at + 2 < text_.size() ? text_[at + 2] : '\0';
      push_data(strip_before(std::string_view(text_).substr(begin, at - begin), after, false),
                begin);
      offset_ = *end;
      moved(at);
      return;
    }
    fail(position(tag), "raw block: expected `{% endraw %}`, got the end of the template");
  }

  // True when the tag ended here. A closing brace inside `{…}` or `[…]` does not end it.
  bool match_end(bool variable) {
    if (!braces_.empty()) {
      return false;
    }
    const std::string_view close = variable ? "}}" : "%}";
    const size_t begin = offset_;
    if (peek() == '-' && starts_with(close, offset_ + 1)) {
      offset_ = skip_space(offset_ + 3);
    } else if (!variable && peek() == '+' && starts_with(close, offset_ + 1)) {
      offset_ += 3;
    } else if (starts_with(close, offset_)) {
      offset_ += 2;
      offset_ += !variable && peek() == '\n' ? 1 : 0;
    } else {
      return false;
    }
    push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, {}, begin);
    moved(begin);
    return true;
  }

  void read_code(size_t tag, bool variable) {
    braces_.clear();
    while (!match_end(variable)) {
      const size_t begin = offset_;
      offset_ = skip_space(offset_);
      if (offset_ == begin) {
        if (offset_ >= text_.size()) {
          fail(position(tag), fmt::format("tag: expected `{}`, got the end of the template",
                                          variable ? "}}" : "%}"));
        }
        read_token();
      }
    }
  }

  void read_token() {
    if (read_number() || read_name() || read_string()) {
      return;
    }
    read_operator();
  }

  // Consumes digits with single underscores between them; false if there is none.
  bool read_digits(int base, std::string& digits) {
    if (!is_digit_of(peek(), base)) {
      return false;
    }
    while (is_digit_of(peek(), base) || (peek() == '_' && is_digit_of(peek(1), base))) {
      if (peek() != '_') {
        digits += peek();
      }
      ++offset_;
    }
    return true;
  }

  bool read_number() {
    if (!is_digit_of(peek(), 10)) {
      return false;
    }
    const size_t begin = offset_;
    const bool after_dot = begin > 0 && text_[begin - 1] == '.';
    std::string digits;
    if (!after_dot) {
      read_digits(10, digits);
      if (read_fraction(digits)) {
        push(TokenKind::kFloat, digits, begin);
        return true;
      }
      offset_ = begin;
    }
    push(TokenKind::kInteger, read_integer(), begin);
    return true;
  }

  bool read_fraction(std::string& digits) {
    const size_t begin = offset_;
    bool found = false;
    if (peek() == '.' && is_digit_of(peek(1), 10)) {
      digits += '.';
      ++offset_;
      found = read_digits(10, digits);
    }
    const size_t sign = peek(1) == '+' || peek(1) == '-' ? 1 : 0;
    if ((peek() == 'e' || peek() == 'E') && is_digit_of(peek(1 + sign), 10)) {
      digits += 'e';
      if (sign != 0) {
        digits += peek(1);
      }
      offset_ += 1 + sign;
      found = read_digits(10, digits);
    }
    if (!found) {
      offset_ = begin;
    }
    return found;
  }

  // Decimal digits of an integer, whatever base it is written in.
  std::string read_integer() {
    const char letter = static_cast<char>(std::tolower(static_cast<unsigned char>(peek(1))));
    const int base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    std::string digits;
    const size_t begin = offset_;
    const size_t skip = peek(2) == '_' ? 3 : 2;
    if (peek() == '0' && base != 0 && is_digit_of(peek(skip), base)) {
      offset_ += skip;
      read_digits(base, digits);
      return std::to_string(to_integer(digits, base, begin));
    }
    if (peek() == '0') {  // a leading zero ends the number unless only zeros follow
      while (peek() == '0' || (peek() == '_' && peek(1) == '0')) {
        ++offset_;
      }
      return "0";
    }
    read_digits(10, digits);
    return std::to_string(to_integer(digits, 10, begin));
  }

  int64_t to_integer(const std::string& digits, int base, size_t begin) const {
    try {
      return std::stoll(digits, nullptr, base);
    } catch (const std::out_of_range&) {
      fail(position(begin), fmt::format("integer: expected at most 64 bits, got `{}`", digits));
    }
  }

  bool read_name() {
    size_t end = offset_;
    const size_t begin = offset_;
    size_t first_end = end;
    if (peek() == '\0' || !is_identifier_start(next_code_point(text_, first_end))) {
      return false;
    }
    end = first_end;
    while (end < text_.size()) {
      size_t after = end;
      if (!is_identifier_part(next_code_point(text_, after))) {
        break;
      }
      end = after;
    }
    offset_ = end;
    push(TokenKind::kName, text_.substr(begin, end - begin), begin);
    return true;
  }

  bool read_string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') {
      return false;
    }
    const size_t begin = offset_;
    size_t end = offset_ + 1;
    while (end < text_.size() && text_[end] != quote) {
      end += text_[end] == '\\' ? 2 : 1;
    }
    if (end >= text_.size()) {
      fail(position(begin), fmt::format("string: expected a closing {}, got the end", quote));
    }
    offset_ = end + 1;
    push(TokenKind::kString,
         unescape(std::string_view(text_).substr(begin + 1, end - begin - 1), begin), begin);
    return true;
  }

  std::string unescape(std::string_view raw, size_t begin) const {
    std::string out;
    for (size_t i = 0; i < raw.size();) {
      if (raw[i] != '\\') {
        out += raw[i++];
        continue;
      }
      ++i;
      i += unescape_one(raw.substr(i), begin, out);
    }
    return out;
  }

  // Appends what the escape means; returns how many bytes behind the backslash it took.
  size_t unescape_one(std::string_view rest, size_t begin, std::string& out) const {
    static constexpr std::string_view kLetters = "\n\\'\"abfnrtv";
    static constexpr std::array<const char*, 11> kMeanings = {"",   "\\", "'",  "\"", "\a", "\b",
                                                              "\f", "\n", "\r", "\t", "\v"};
    if (const size_t found = kLetters.find(rest[0]); found != std::string_view::npos) {
      out += kMeanings[found];
      return 1;
    }
    size_t used = 0;
    char32_t code = 0;
    if (is_digit_of(rest[0], 8)) {
      while (used < 3 && used < rest.size() && is_digit_of(rest[used], 8)) {
        code = code * 8 + static_cast<char32_t>(rest[used++] - '0');
      }
    } else if (rest[0] == 'x' || rest[0] == 'u' || rest[0] == 'U') {
      const size_t num_digits = rest[0] == 'x' ? 2 : rest[0] == 'u' ? 4 : 8;
      for (used = 1; used <= num_digits; ++used) {
        if (used >= rest.size() || !is_digit_of(rest[used], 16)) {
          fail(position(begin), fmt::format("string: expected {} hexadecimal digits after `\\{}`",
                                            num_digits, rest[0]));
        }
        code =
            code * 16 + static_cast<char32_t>(std::stoi(std::string(1, rest[used]), nullptr, 16));
      }
    } else if (rest[0] == 'N') {
      fail(position(begin), "string: character names `\\N{…}` are not supported");
    } else {
      out += '\\';
      return 0;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      fail(position(begin), "string: expected a Unicode character, got a surrogate or more");
    }
    append_code_point(out, code);
    return used;
  }

  void read_operator() {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (std::string_view symbol : kOperators) {
      if (starts_with(symbol, offset_)) {
        balance(symbol);
        push(TokenKind::kOperator, std::string(symbol), offset_);
        offset_ += symbol.size();
        return;
      }
    }
    size_t end = offset_;
    next_code_point(text_, end);
    fail(position(offset_),
         fmt::format("expected a token, got character `{}`", text_.substr(offset_, end - offset_)));
  }

  void balance(std::string_view symbol) {
    const size_t opens = std::string_view("([{").find(symbol);
    if (opens != std::string_view::npos) {
      braces_ += ")]}"[opens];
    } else if (symbol == ")" || symbol == "]" || symbol == "}") {
      if (braces_.empty() || braces_.back() != symbol[0]) {
        fail(position(offset_),
             fmt::format("expected {}, got `{}`",
                         braces_.empty() ? std::string("an opening bracket before")
                                         : fmt::format("`{}`", braces_.back()),
                         symbol));
      }
      braces_.pop_back();
    }
  }

  std::string text_;
  std::vector<size_t> line_starts_;
  std::vector<Token> tokens_;
  std::string braces_;  // closing brackets still to come
  size_t offset_ = 0;
  bool line_starting_ = true;
  mutable Position known_;
  mutable size_t known_offset_ = 0;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace graft::text::jinja

// Methods of str.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

const std::string& text_of(const Value& self) { return self.as_string(); }

template <std::string (*kConvert)(std::string_view)>
Value convert(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  return interpreter.make_string(kConvert(text_of(self)), self.is_markup());
}

template <Side kSide>
Value strip_method(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("strip", arguments, {"chars"});
  const std::string* chars = bound.has_value(0) ? &bound.text(0) : nullptr;
  return interpreter.make_string(std::string(strip(text_of(self), kSide, chars)), self.is_markup());
}

Value make_parts(Interpreter& interpreter, const Value& self,
                 const std::vector<std::string_view>& parts) {
  std::vector<Value> values;
  interpreter.charge(parts.size() * 64);
  for (std::string_view part : parts) {
    values.push_back(interpreter.make_string(std::string(part), self.is_markup()));
  }
  return Value::list(std::move(values));
}

std::vector<std::string_view> split_by(std::string_view text, std::string_view separator,
                                       int64_t limit) {
  if (separator.empty()) {
    throw Fault{"type", "empty separator", {}, {}, {}};
  }
  std::vector<std::string_view> parts;
  size_t begin = 0;
  while (limit != 0) {
    const size_t found = text.find(separator, begin);
    if (found == text.npos) {
      break;
    }
    parts.push_back(text.substr(begin, found - begin));
    begin = found + separator.size();
    --limit;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::vector<std::string_view> split_by_right(std::string_view text, std::string_view separator,
                                             int64_t limit) {
  if (separator.empty()) {
    throw Fault{"type", "empty separator", {}, {}, {}};
  }
  std::vector<std::string_view> parts;
  while (limit != 0 && text.size() >= separator.size()) {
    const size_t found = text.rfind(separator);
    if (found == text.npos) {
      break;
    }
    parts.push_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
    --limit;
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

// Bytes of the leading (or trailing) run whose code points are white space, or are not.
size_t run_length(std::string_view text, bool space) {
  size_t offset = 0;
  while (offset < text.size()) {
    size_t after = offset;
    if (is_space(next_code_point(text, after)) != space) {
      break;
    }
    offset = after;
  }
  return offset;
}

std::vector<std::string_view> split_space(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  text = strip(text, Side::kLeft);
  while (!text.empty() && limit != 0) {
    const size_t size = run_length(text, /*space=*/false);
    parts.push_back(text.substr(0, size));
    text = strip(text.substr(size), Side::kLeft);
    --limit;
  }
  if (!text.empty()) {
    parts.push_back(text);  // keeps its trailing white space, as Python does
  }
  return parts;
}

std::vector<std::string_view> split_space_right(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  text = strip(text, Side::kRight);
  while (!text.empty() && limit != 0) {
    size_t begin = 0;
    for (size_t offset = 0; offset < text.size();) {
      if (is_space(next_code_point(text, offset))) {
        begin = offset;
      }
    }
    parts.push_back(text.substr(begin));
    text = strip(text.substr(0, begin), Side::kRight);
    --limit;
  }
  if (!text.empty()) {
    parts.push_back(text);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

template <bool kFromRight>
Value split(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("split", arguments, {"sep", "maxsplit"});
  const int64_t limit = bound.integer(1, -1);
  const std::string& text = text_of(self);
  interpreter.charge(text.size());
  if (!bound.has_value(0)) {
    if (kFromRight && limit >= 0) {
      interpreter.charge(text.size() * static_cast<uint64_t>(std::min<int64_t>(limit, 1000)));
      return make_parts(interpreter, self, split_space_right(text, limit));
    }
    return make_parts(interpreter, self, split_space(text, limit));
  }
  const std::string& separator = bound.text(0);
  return make_parts(
      interpreter, self,
      kFromRight ? split_by_right(text, separator, limit) : split_by(text, separator, limit));
}

Value split_lines(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("splitlines", arguments, {"keepends"});
  const std::string_view text = text_of(self);
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t offset = 0; offset < text.size();) {
    const size_t end = offset;
    const char32_t code = next_code_point(text, offset);
    if (!is_line_break(code)) {
      continue;
    }
    if (code == '\r' && offset < text.size() && text[offset] == '\n') {
      ++offset;
    }
    lines.push_back(text.substr(begin, (bound.flag(0, false) ? offset : end) - begin));
    begin = offset;
  }
  if (begin < text.size()) {
    lines.push_back(text.substr(begin));
  }
  return make_parts(interpreter, self, lines);
}

template <bool kFromRight>
Value partition(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("partition", arguments, {"sep"}, 1);
  const std::string_view text = text_of(self);
  const std::string& separator = bound.text(0);
  if (separator.empty()) {
    throw Fault{"type", "empty separator", {}, {}, {}};
  }
  const size_t found = kFromRight ? text.rfind(separator) : text.find(separator);
  std::vector<std::string_view> parts = {text, "", ""};
  if (found != text.npos) {
    parts = {text.substr(0, found), separator, text.substr(found + separator.size())};
  } else if (kFromRight) {
    parts = {"", "", text};
  }
  const Value list = make_parts(interpreter, self, parts);
  return Value::tuple(list.as_sequence().items);
}

Value replace(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const Arguments forwarded{{Value::string(bound.text(0)), Value::string(bound.text(1)),
                             Value::integer(bound.integer(2, -1))},
                            {}};
  return interpreter.apply_filter("replace", self, forwarded);
}

// The part of the text between two optional positions in code points.
struct Window {
  std::string_view text;
  int64_t start;  // in code points, kept for what `find` returns
  bool valid;     // false when start lies behind the end, where even "" is not found
};

Window window(const Value& self, const Bound& bound) {
  const int64_t length = *length_of(self);
  auto place = [&](size_t i, int64_t fallback) {
    const int64_t value = bound.has_value(i) ? bound.integer(i, 0) : fallback;
    return value < 0 ? std::max<int64_t>(value + length, 0) : value;
  };
  const int64_t start = place(1, 0);
  const int64_t stop = std::min(place(2, length), length);
  if (start > stop) {
    return {"", start, false};
  }
  const std::string_view text = text_of(self);
  const size_t begin = byte_offset(text, start);
  const std::string_view rest = text.substr(begin);
  return {rest.substr(0, byte_offset(rest, stop - start)), start, true};
}

int64_t find_position(const Value& self, const Bound& bound, bool from_right) {
  const Window part = window(self, bound);
  const size_t found = !part.valid  ? std::string_view::npos
                       : from_right ? part.text.rfind(bound.text(0))
                                    : part.text.find(bound.text(0));
  return found == part.text.npos ? -1 : part.start + count_code_points(part.text.substr(0, found));
}

template <bool kFromRight, bool kMustExist>
Value find(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("find", arguments, {"sub", "start", "end"}, 1);
  interpreter.charge(text_of(self).size());
  const int64_t position = find_position(self, bound, kFromRight);
  if (kMustExist && position < 0) {
    fail_type("substring not found");
  }
  return Value::integer(position);
}

Value count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("count", arguments, {"sub", "start", "end"}, 1);
  interpreter.charge(text_of(self).size());
  const Window part = window(self, bound);
  const std::string& wanted = bound.text(0);
  if (!part.valid) {
    return Value::integer(0);
  }
  if (wanted.empty()) {
    return Value::integer(count_code_points(part.text) + 1);
  }
  int64_t total = 0;
  for (size_t at = part.text.find(wanted); at != part.text.npos;
       at = part.text.find(wanted, at + wanted.size())) {
    ++total;
  }
  return Value::integer(total);
}

template <bool kAtEnd>
Value has_affix(Interpreter&, const Value& self, const Arguments& arguments) {
  const std::string_view name = kAtEnd ? "endswith" : "startswith";
  const Bound bound(name, arguments, {"prefix", "start", "end"}, 1);
  const Window part = window(self, bound);
  auto matches = [&](const Value& affix) {
    if (!affix.is(Kind::kString)) {
      fail_type(fmt::format("{} first arg must be str or a tuple of str, not {}", name,
                            type_name(affix)));
    }
    return part.valid && (kAtEnd ? part.text.ends_with(affix.as_string())
                                 : part.text.starts_with(affix.as_string()));
  };
  if (!bound[0].is(Kind::kTuple)) {
    return Value::boolean(matches(bound[0]));
  }
  const auto& options = bound[0].as_sequence().items;
  return Value::boolean(std::any_of(options.begin(), options.end(), matches));
}

template <bool kSuffix>
Value remove_affix(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("removeprefix", arguments, {"affix"}, 1);
  std::string_view text = text_of(self);
  const std::string& affix = bound.text(0);
  if (kSuffix && text.ends_with(affix)) {
    text.remove_suffix(affix.size());
  } else if (!kSuffix && text.starts_with(affix)) {
    text.remove_prefix(affix.size());
  }
  return interpreter.make_string(std::string(text), self.is_markup());
}

Value join(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("join", arguments, {"iterable"}, 1);
  std::string out;
  int64_t index = 0;
  for (const Value& part : interpreter.items(bound[0])) {
    if (!part.is(Kind::kString)) {
      fail_type(
          fmt::format("sequence item {}: expected str instance, {} found", index, type_name(part)));
    }
    interpreter.charge(part.as_string().size() + text_of(self).size());
    out += (index++ > 0 ? text_of(self) : "") + part.as_string();
  }
  return Value::string(std::move(out), self.is_markup());
}

// Space on the left and on the right, filled up to a width in code points.
std::string pad(Interpreter& interpreter, std::string_view text, int64_t left, int64_t right,
                const std::string& fill) {
  interpreter.charge(static_cast<uint64_t>(left + right) * fill.size());
  std::string out;
  for (int64_t i = 0; i < left; ++i) {
    out += fill;
  }
  out += text;
  for (int64_t i = 0; i < right; ++i) {
    out += fill;
  }
  return out;
}

enum class Align { kLeft, kRight, kCenter };

template <Align kAlign>
Value justify(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("justify", arguments, {"width", "fillchar"}, 1);
  const std::string fill = bound.has(1) ? bound.text(1) : " ";
  if (count_code_points(fill) != 1) {
    fail_type("the fill character must be exactly one character long");
  }
  const int64_t width = std::min<int64_t>(bound.integer(0, 0), INT64_MAX / 8);
  const int64_t missing = std::max<int64_t>(width - *length_of(self), 0);
  // Python's centre leans left when both the missing space and the width are odd.
  const int64_t left = kAlign == Align::kLeft    ? 0
                       : kAlign == Align::kRight ? missing
                                                 : missing / 2 + (missing & width & 1);
  return interpreter.make_string(pad(interpreter, text_of(self), left, missing - left, fill),
                                 self.is_markup());
}

Value zfill(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("zfill", arguments, {"width"}, 1);
  const int64_t width = std::min<int64_t>(bound.integer(0, 0), INT64_MAX / 8);
  const int64_t missing = std::max<int64_t>(width - *length_of(self), 0);
  const std::string_view text = text_of(self);
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return interpreter.make_string(std::string(text.substr(0, sign)) +
                                 pad(interpreter, text.substr(sign), missing, 0, "0"));
}

Value expand_tabs(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("expandtabs", arguments, {"tabsize"});
  const int64_t size = std::min<int64_t>(bound.integer(0, 8), 1 << 20);
  std::string out;
  int64_t column = 0;
  for (const char c : text_of(self)) {
    if (c == '\t') {
      const int64_t width = size > 0 ? size - column % size : 0;
      interpreter.charge(static_cast<uint64_t>(width));
      out.append(static_cast<size_t>(width), ' ');
      column += width;
      continue;
    }
    out += c;
    column = c == '\n' || c == '\r' ? 0 : column + ((c & 0xC0) != 0x80 ? 1 : 0);
  }
  return interpreter.make_string(std::move(out), self.is_markup());
}

Value format(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return interpreter.make_string(format_braces(interpreter, text_of(self), arguments),
                                 self.is_markup());
}

// True when the text is not empty and every code point passes.
template <bool (*kTest)(char32_t)>
Value all_are(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  interpreter.charge(text_of(self).size());
  const std::u32string codes = decode_utf8(text_of(self));
  return Value::boolean(!codes.empty() && std::all_of(codes.begin(), codes.end(), kTest));
}

bool is_alnum(char32_t code) {
  return is_alpha(code) || is_decimal(code) || is_digit(code) || is_numeric(code);
}
bool is_ascii(char32_t code) { return code < 0x80; }

// islower and isupper: at least one cased letter, and none of the other case.
template <bool kUpper>
Value is_case(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  interpreter.charge(text_of(self).size());
  bool any = false;
  for (const char32_t code : decode_utf8(text_of(self))) {
    if (kUpper ? is_lower(code) : is_upper(code)) {
      return Value::boolean(false);
    }
    any = any || (kUpper ? is_upper(code) : is_lower(code));
  }
  return Value::boolean(any);
}

Value is_title(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("istitle", arguments, {});
  interpreter.charge(text_of(self).size());
  bool any = false;
  bool after_cased = false;
  for (const char32_t code : decode_utf8(text_of(self))) {
    if ((is_upper(code) && after_cased) || (is_lower(code) && !after_cased)) {
      return Value::boolean(false);
    }
    after_cased = is_cased(code);
    any = any || after_cased;
  }
  return Value::boolean(any);
}

Value is_identifier(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("isidentifier", arguments, {});
  const std::u32string codes = decode_utf8(text_of(self));
  return Value::boolean(!codes.empty() && is_identifier_start(codes[0]) &&
                        std::all_of(codes.begin(), codes.end(), is_identifier_part));
}

template <bool (*kTest)(char32_t)>
Value all_or_empty(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return text_of(self).empty() ? Value::boolean(true)
                               : all_are<kTest>(interpreter, self, arguments);
}

constexpr std::array kMethods = {
    Method{"capitalize", convert<to_capitalized>},
    Method{"casefold", convert<to_lower>},
    Method{"center", justify<Align::kCenter>},
    Method{"count", count},
    Method{"encode", nullptr},
    Method{"endswith", has_affix<true>},
    Method{"expandtabs", expand_tabs},
    Method{"find", find<false, false>},
    Method{"format", format},
    Method{"format_map", nullptr},
    Method{"index", find<false, true>},
    Method{"isalnum", all_are<is_alnum>},
    Method{"isalpha", all_are<is_alpha>},
    Method{"isascii", all_or_empty<is_ascii>},
    Method{"isdecimal", all_are<is_decimal>},
    Method{"isdigit", all_are<is_digit>},
    Method{"isidentifier", is_identifier},
    Method{"islower", is_case<false>},
    Method{"isnumeric", all_are<is_numeric>},
    Method{"isprintable", all_or_empty<is_printable>},
    Method{"isspace", all_are<is_space>},
    Method{"istitle", is_title},
    Method{"isupper", is_case<true>},
    Method{"join", join},
    Method{"ljust", justify<Align::kLeft>},
    Method{"lower", convert<to_lower>},
    Method{"lstrip", strip_method<Side::kLeft>},
    Method{"maketrans", nullptr},
    Method{"partition", partition<false>},
    Method{"removeprefix", remove_affix<false>},
    Method{"removesuffix", remove_affix<true>},
    Method{"replace", replace},
    Method{"rfind", find<true, false>},
    Method{"rindex", find<true, true>},
    Method{"rjust", justify<Align::kRight>},
    Method{"rpartition", partition<true>},
    Method{"rsplit", split<true>},
    Method{"rstrip", strip_method<Side::kRight>},
    Method{"split", split<false>},
    Method{"splitlines", split_lines},
    Method{"startswith", has_affix<false>},
    Method{"strip", strip_method<Side::kBoth>},
    Method{"swapcase", convert<swap_case>},
    Method{"title", convert<to_title>},
    Method{"translate", nullptr},
    Method{"upper", convert<to_upper>},
    Method{"zfill", zfill},
};

}  // namespace

const Method* find_string_method(std::string_view name) {
  const auto found = std::find_if(kMethods.begin(), kMethods.end(),
                                  [&](const Method& method) { return method.name == name; });
  return found == kMethods.end() ? nullptr : &*found;
}

}  // namespace graft::text::jinja

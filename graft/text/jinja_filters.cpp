// Filters on text, numbers and single values; those on sequences are in jinja_sequence_filters.cpp.
#include "graft/text/jinja_filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "graft/core/markup.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

// The subject as text that keeps its markup, as soft_str does.
Value soft_text(const Value& value) {
  return value.is(Kind::kString) ? value : Value::string(to_text(value));
}

template <std::string (*kConvert)(std::string_view)>
Value convert(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("filter", arguments, {});
  const Value text = soft_text(self);
  return interpreter.make_string(kConvert(text.as_string()), text.is_markup());
}

// The filter's own title: words begin behind white space and the brackets `-({[<` alone.
std::string title_words(std::string_view text) {
  std::string out;
  size_t begin = 0;
  auto flush = [&](size_t end) {
    const std::string_view word = text.substr(begin, end - begin);
    const size_t first = byte_offset(word, 1);
    out += to_upper(word.substr(0, first)) + to_lower(word.substr(first));
  };
  for (size_t offset = 0; offset < text.size();) {
    const size_t at = offset;
    const char32_t code = next_code_point(text, offset);
    if (is_space(code) || (code < 0x80 && std::string_view("-({[<").find(static_cast<char>(code)) !=
                                              std::string_view::npos)) {
      flush(at);
      out += text.substr(at, offset - at);
      begin = offset;
    }
  }
  flush(text.size());
  return out;
}

Value trim(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("trim", arguments, {"chars"});
  const Value text = soft_text(self);
  const std::string* chars = bound.has_value(0) ? &bound.text(0) : nullptr;
  return interpreter.make_string(std::string(strip(text.as_string(), Side::kBoth, chars)),
                                 text.is_markup());
}

Value replace(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const std::string text = to_text(self);
  const std::string old = to_text(bound[0]);
  const std::string with = to_text(bound[1]);
  int64_t left = bound.integer(2, -1);
  std::string out;
  auto put = [&](std::string_view part) {
    interpreter.charge(part.size());
    out += part;
  };
  size_t begin = 0;
  if (old.empty()) {  // Python puts the new text between all characters
    while (left != 0 && begin <= text.size()) {
      put(with);
      --left;
      const size_t next = begin + byte_offset(std::string_view(text).substr(begin), 1);
      if (next == begin) {
        return Value::string(std::move(out));
      }
      put(std::string_view(text).substr(begin, next - begin));
      begin = next;
    }
  } else {
    for (size_t at = text.find(old); left != 0 && at != text.npos; at = text.find(old, begin)) {
      put(std::string_view(text).substr(begin, at - begin));
      put(with);
      begin = at + old.size();
      --left;
    }
  }
  put(std::string_view(text).substr(begin));
  return Value::string(std::move(out));
}

Value default_value(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("default", arguments, {"default_value", "boolean"});
  const bool absent = self.is(Kind::kUndefined) || (bound.flag(1, false) && !truthy(self));
  return !absent ? self : bound.has(0) ? bound[0] : Value::string("");
}

JsonStyle json_style(const Bound& bound) {
  JsonStyle style;
  style.ensure_ascii = bound.flag(0, false);
  if (bound.has_value(1)) {
    style.indent =
        bound[1].is(Kind::kString)
            ? bound[1].as_string()
            : std::string(static_cast<size_t>(std::clamp<int64_t>(bound.integer(1, 0), 0, 1 << 16)),
                          ' ');
    style.item_separator = ",";
  }
  if (bound.has_value(2)) {
    const bool pair = bound[2].is_sequence() && bound[2].as_sequence().items.size() == 2;
    const auto& items = pair ? bound[2].as_sequence().items : std::vector<Value>();
    if (!pair || !items[0].is(Kind::kString) || !items[1].is(Kind::kString)) {
      fail_type("tojson: expected `separators` to be two strings");
    }
    style.item_separator = items[0].as_string();
    style.key_separator = items[1].as_string();
  }
  style.sort_keys = bound.flag(3, false);
  return style;
}

Value tojson(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  const JsonStyle style = json_style(bound);
  const uint64_t overhead = style.item_separator.size() + style.key_separator.size() +
                            (style.indent ? style.indent->size() * (self.depth() + 1) : 0);
  interpreter.charge(self.weight() * (overhead + 1));
  return interpreter.make_string(to_json(self, style));
}

Value indent(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("indent", arguments, {"width", "first", "blank"});
  const std::string margin =
      bound.has(0) && bound[0].is(Kind::kString)
          ? bound[0].as_string()
          : std::string(static_cast<size_t>(std::clamp<int64_t>(bound.integer(0, 4), 0, 1 << 16)),
                        ' ');
  if (!self.is(Kind::kString)) {
    fail_type(fmt::format("indent: expected a string, got {}", type_name(self)));
  }
  const std::string text = self.as_string() + "\n";  // a last line end is a line of its own
  std::string out;
  bool first = true;
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != text.npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    const bool indented = first ? bound.flag(1, false) : bound.flag(2, false) || !line.empty();
    interpreter.charge(margin.size() + line.size());
    out += (first ? "" : "\n") + (indented ? margin : std::string()) + line;
    first = false;
    begin = end + 1;
  }
  return Value::string(std::move(out), self.is_markup());
}

// Python's float(text): white space around, `_` between digits, inf and nan.
std::optional<double> parse_float(std::string_view raw) {
  std::string text = to_lower(strip(raw, Side::kBoth));
  for (size_t at = text.find('_'); at != text.npos; at = text.find('_', at)) {
    const bool between = at > 0 && at + 1 < text.size() && std::isdigit(text[at - 1]) != 0 &&
                         std::isdigit(text[at + 1]) != 0;
    if (!between) {
      return std::nullopt;
    }
    text.erase(at, 1);
  }
  const bool negative = !text.empty() && text[0] == '-';
  const std::string digits = text.substr(!text.empty() && (negative || text[0] == '+') ? 1 : 0);
  double number = 0;
  if (digits == "inf" || digits == "infinity" || digits == "nan") {
    number = digits == "nan" ? NAN : INFINITY;
  } else {
    const bool plain = !digits.empty() &&
                       digits.find_first_not_of("0123456789.e+-") == std::string::npos &&
                       digits[0] != '+' && digits[0] != '-';
    const auto end = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), end, number);
    if (!plain || parsed.ptr != end || parsed.ec == std::errc::invalid_argument) {
      return std::nullopt;
    }
    if (parsed.ec == std::errc::result_out_of_range) {
      number = std::strtod(digits.c_str(), nullptr);
    }
  }
  return negative ? -number : number;
}

// Python's int(text, base), none if the text is no integer of 64 bits.
std::optional<int64_t> parse_int(std::string_view raw, int64_t base) {
  std::string text = to_lower(strip(raw, Side::kBoth));
  const bool negative = !text.empty() && text[0] == '-';
  text.erase(0, !text.empty() && (negative || text[0] == '+') ? 1 : 0);
  const std::string_view prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (!prefix.empty() && text.starts_with(prefix)) {
    text.erase(0, 2);
  }
  std::string digits = negative ? "-" : "";
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_') {
      continue;
    }
    digits += text[i];
  }
  int64_t number = 0;
  const auto end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, number, static_cast<int>(base));
  if (text.empty() || text[0] == '-' || parsed.ec != std::errc() || parsed.ptr != end) {
    return std::nullopt;
  }
  return number;
}

std::optional<Value> truncate_float(double number) {
  if (!(std::abs(number) < 9.2e18)) {
    return std::nullopt;
  }
  return Value::integer(static_cast<int64_t>(number));
}

Value to_int(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("int", arguments, {"default", "base"});
  const Value fallback = bound.has(0) ? bound[0] : Value::integer(0);
  const int64_t base = bound.integer(1, 10);
  if (base < 2 || base > 36) {
    fail_type("int() base must be >= 2 and <= 36");
  }
  if (self.is_integral()) {
    return Value::integer(self.as_int());
  }
  if (self.is(Kind::kFloat)) {
    return truncate_float(self.as_double()).value_or(fallback);
  }
  if (!self.is(Kind::kString)) {
    if (self.is(Kind::kUndefined)) {
      throw Fault{"undefined", self.as_undefined().message, {}, {}, {}};
    }
    return fallback;
  }
  if (const auto number = parse_int(self.as_string(), base)) {
    return Value::integer(*number);
  }
  const auto real = parse_float(self.as_string());
  return real ? truncate_float(*real).value_or(fallback) : fallback;
}

Value to_float(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("float", arguments, {"default"});
  const Value fallback = bound.has(0) ? bound[0] : Value::real(0);
  if (self.is_number()) {
    return Value::real(self.as_double());
  }
  if (self.is(Kind::kUndefined)) {
    throw Fault{"undefined", self.as_undefined().message, {}, {}, {}};
  }
  const auto number = self.is(Kind::kString) ? parse_float(self.as_string()) : std::nullopt;
  return number ? Value::real(*number) : fallback;
}

Value absolute(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("abs", arguments, {});
  if (self.is(Kind::kFloat)) {
    return Value::real(std::abs(self.as_double()));
  }
  if (!self.is_integral()) {
    fail_type(fmt::format("bad operand type for abs(): '{}'", type_name(self)));
  }
  return self.as_int() < 0 ? interpreter.binary("-", Value::integer(0), self)
                           : Value::integer(self.as_int());
}

// Half to even on the decimal digits, as Python's round does.
double round_digits(double number, int64_t digits) {
  if (!std::isfinite(number) || digits > 300) {
    return number;
  }
  if (digits >= 0) {
    return std::strtod(fmt::format("{:.{}f}", number, digits).c_str(), nullptr);
  }
  const double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::isfinite(scale) ? std::nearbyint(number / scale) * scale : 0.0;
}

Value round_number(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("round", arguments, {"precision", "method"});
  const int64_t digits = bound.integer(0, 0);
  const std::string method = bound.has(1) ? bound.text(1) : "common";
  if (!self.is_number()) {
    fail_type(fmt::format("type {} doesn't define __round__ method", type_name(self)));
  }
  if (method == "common") {
    if (self.is_integral() && digits >= 0) {
      return Value::integer(self.as_int());
    }
    const double rounded = round_digits(self.as_double(), digits);
    return self.is_integral() ? Value::integer(static_cast<int64_t>(rounded))
                              : Value::real(rounded);
  }
  if (method != "ceil" && method != "floor") {
    fail_type("round: expected method common, ceil or floor");
  }
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = self.as_double() * scale;
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value to_string(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("string", arguments, {});
  return self.is(Kind::kString) ? self : interpreter.make_string(to_text(self));
}

Value mark_safe(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("safe", arguments, {});
  return interpreter.make_string(to_text(self), /*markup=*/true);
}

Value escape(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("escape", arguments, {});
  return self.is_markup() ? self : interpreter.make_string(escape_html(to_text(self)), true);
}

Value force_escape(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("forceescape", arguments, {});
  return interpreter.make_string(escape_html(to_text(self)), true);
}

Value format(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Value text = soft_text(self);
  if (arguments.named.empty()) {
    return interpreter.binary("%", text, Value::tuple(arguments.positional));
  }
  if (!arguments.positional.empty()) {
    fail_type("can't handle positional and keyword arguments at the same time");
  }
  auto dict = std::make_shared<DictObject>();
  for (const auto& [name, value] : arguments.named) {
    dict->insert(Value::string(name), value);
  }
  return interpreter.binary("%", text, make_dict(std::move(dict)));
}

Value center(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("center", arguments, {"width"});
  const Value width = Value::integer(bound.integer(0, 80));
  return interpreter.call(interpreter.attribute(soft_text(self), "center"), {{width}, {}});
}

Value word_count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("wordcount", arguments, {});
  const std::string text = to_text(self);
  interpreter.charge(text.size());
  int64_t words = 0;
  bool inside = false;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t code = next_code_point(text, offset);
    const bool word = code == '_' || is_alpha(code) || is_numeric(code);
    words += word && !inside ? 1 : 0;
    inside = word;
  }
  return Value::integer(words);
}

Value truncate(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const Value text = soft_text(self);
  const std::string end = bound.has(2) ? bound.text(2) : "...";
  const int64_t length = bound.integer(0, 255);
  const int64_t end_length = count_code_points(end);
  const int64_t leeway = bound.integer(3, 5);
  if (length < end_length || leeway < 0 || leeway > INT32_MAX) {
    fail_type(fmt::format("truncate: expected length >= {} and leeway >= 0", end_length));
  }
  if (*length_of(text) - leeway <= length) {
    return text;
  }
  std::string cut = slice(text, {0, length - end_length, std::nullopt}).as_string();
  if (!bound.flag(1, false)) {
    const size_t space = cut.rfind(' ');
    cut = cut.substr(0, space);
  }
  return interpreter.make_string(cut + end);
}

Value url_encode(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("urlencode", arguments, {});
  if (is_iterable(self) && !self.is(Kind::kString)) {
    throw Fault{"unsupported", "urlencode: only text can be encoded", {}, {}, {}};
  }
  std::string out;
  for (const char c : to_text(self)) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("_.-~/").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return interpreter.make_string(std::move(out));
}

constexpr std::array kFilters = {
    NamedNative{"abs", absolute},
    NamedNative{"capitalize", convert<to_capitalized>},
    NamedNative{"center", center},
    NamedNative{"d", default_value},
    NamedNative{"default", default_value},
    NamedNative{"e", escape},
    NamedNative{"escape", escape},
    NamedNative{"float", to_float},
    NamedNative{"forceescape", force_escape},
    NamedNative{"format", format},
    NamedNative{"indent", indent},
    NamedNative{"int", to_int},
    NamedNative{"lower", convert<to_lower>},
    NamedNative{"replace", replace},
    NamedNative{"round", round_number},
    NamedNative{"safe", mark_safe},
    NamedNative{"string", to_string},
    NamedNative{"title", convert<title_words>},
    NamedNative{"tojson", tojson},
    NamedNative{"trim", trim},
    NamedNative{"truncate", truncate},
    NamedNative{"upper", convert<to_upper>},
    NamedNative{"urlencode", url_encode},
    NamedNative{"wordcount", word_count},
};

}  // namespace

Native find_filter(std::string_view name) {
  const Native found = find_native(kFilters, name);
  return found != nullptr ? found : find_sequence_filter(name);
}

}  // namespace graft::text::jinja

// Python's `%` and str.format, for the types that templates have.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>

#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxPrecision = 400;

[[noreturn]] void fail_format(std::string message) {
  throw Fault{"type", "format: " + message, {}, {}, {}};
}

// [[fill]align][sign][#][0][width][,][.precision][type], as Python's format specification.
struct Spec {
  std::string fill = " ";
  char align = '\0';
  char sign = '-';
  bool alternate = false;
  bool grouped = false;
  int64_t width = 0;
  std::optional<int64_t> precision;
  char type = '\0';
};

int64_t read_number(std::string_view text, size_t& at, int64_t limit) {
  int64_t number = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    number = number * 10 + (text[at++] - '0');
    if (number > limit) {
      fail_format(fmt::format("expected a width or precision of at most {}", limit));
    }
  }
  return number;
}

Spec parse_spec(std::string_view text) {
  constexpr std::string_view kAligns = "<>=^";
  Spec spec;
  size_t at = 0;
  size_t first = 0;
  if (!text.empty()) {
    next_code_point(text, first);
  }
  if (first > 0 && first < text.size() && kAligns.find(text[first]) != kAligns.npos) {
    spec.fill = std::string(text.substr(0, first));
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && kAligns.find(text[0]) != kAligns.npos) {
    spec.align = text[at++];
  }
  auto skip = [&](char wanted) {
    const bool found = at < text.size() && text[at] == wanted;
    at += found ? 1 : 0;
    return found;
  };
  for (const char sign : {'+', '-', ' '}) {
    if (skip(sign)) {
      spec.sign = sign;
      break;
    }
  }
  spec.alternate = skip('#');
  if (skip('0') && spec.align == '\0') {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = read_number(text, at, kMaxWidth);
  spec.grouped = skip(',');
  if (skip('.')) {
    spec.precision = read_number(text, at, kMaxPrecision);
  }
  if (at < text.size()) {
    spec.type = text[at++];
  }
  if (at != text.size()) {
    fail_format(fmt::format("invalid format specifier '{}'", text));
  }
  return spec;
}

std::string pad(const std::string& text, const std::string& prefix, const Spec& spec,
                char default_align) {
  const int64_t size = count_code_points(text) + count_code_points(prefix);
  const int64_t missing = std::max<int64_t>(spec.width - size, 0);
  const char align = spec.align != '\0' ? spec.align : default_align;
  const int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  auto fill = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) {
      out += spec.fill;
    }
    return out;
  };
  if (align == '=') {
    return prefix + fill(missing) + text;
  }
  return fill(left) + prefix + text + fill(missing - left);
}

std::string sign_of(bool negative, char sign) {
  return negative ? "-" : sign == '-' ? "" : std::string(1, sign);
}

std::string group_thousands(const std::string& text) {
  size_t end = text.find_first_not_of("0123456789");
  end = end == text.npos ? text.size() : end;
  std::string out = text;
  for (size_t at = end; at > 3; at -= 3) {
    out.insert(at - 3, ",");
  }
  return out;
}

std::string format_float(double value, const Spec& spec) {
  const double magnitude = std::abs(value);
  const bool negative = std::signbit(value);
  std::string text;
  if (spec.type == '\0' && !spec.precision) {
    text = float_repr(magnitude);
  } else {
    const int precision = static_cast<int>(spec.precision.value_or(6));
    const char type = spec.type == '\0' ? 'g' : spec.type == '%' ? 'f' : spec.type;
    const std::string pattern = fmt::format("%{}.*{}", spec.alternate ? "#" : "", type);
    std::vector<char> buffer(static_cast<size_t>(precision) + 400);
    const double shown = spec.type == '%' ? magnitude * 100 : magnitude;
    const int size = std::snprintf(buffer.data(), buffer.size(), pattern.c_str(), precision, shown);
    text.assign(buffer.data(), static_cast<size_t>(std::max(size, 0)));
    const bool looks_integral = text.find_first_not_of("0123456789") == text.npos;
    if (spec.type == '\0' && looks_integral) {
      text += ".0";  // Python keeps floats recognisable
    }
    text += spec.type == '%' ? "%" : "";
  }
  return pad(spec.grouped ? group_thousands(text) : text, sign_of(negative, spec.sign), spec, '>');
}

std::string format_integer(int64_t value, const Spec& spec) {
  if (spec.precision) {
    fail_format("precision not allowed in integer format specifier");
  }
  const uint64_t magnitude =
      value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  std::string text;
  std::string prefix = sign_of(value < 0, spec.sign);
  switch (spec.type) {
    case '\0':
    case 'd':
    case 'n':
      text = std::to_string(magnitude);
      break;
    case 'x':
      text = fmt::format("{:x}", magnitude);
      break;
    case 'X':
      text = fmt::format("{:X}", magnitude);
      break;
    case 'o':
      text = fmt::format("{:o}", magnitude);
      break;
    case 'b':
      text = fmt::format("{:b}", magnitude);
      break;
    default:
      fail_format(fmt::format("unknown format code '{}' for an integer", spec.type));
  }
  if (spec.alternate && std::string_view("xXob").find(spec.type) != std::string_view::npos) {
    prefix += std::string("0") + spec.type;
  }
  return pad(spec.grouped ? group_thousands(text) : text, prefix, spec, '>');
}

bool is_float_type(char type) {
  return std::string_view("eEfFgG%").find(type) != std::string_view::npos && type != '\0';
}

// Python's format(value, spec).
std::string format_value(const Value& value, std::string_view text) {
  if (text.empty()) {
    return to_text(value);
  }
  const Spec spec = parse_spec(text);
  if (value.is(Kind::kFloat) || (value.is_integral() && is_float_type(spec.type))) {
    if (spec.type != '\0' && !is_float_type(spec.type)) {
      fail_format(fmt::format("unknown format code '{}' for a float", spec.type));
    }
    return format_float(value.as_double(), spec);
  }
  if (value.is(Kind::kInt) || (value.is(Kind::kBool) && spec.type != '\0')) {
    return format_integer(value.as_int(), spec);
  }
  if (value.is(Kind::kBool)) {
    return format_integer(value.as_int(), spec);
  }
  if (!value.is(Kind::kString)) {
    fail_format(fmt::format("unsupported format string passed to {}.__format__", type_name(value)));
  }
  if ((spec.type != '\0' && spec.type != 's') || spec.align == '=' || spec.sign != '-') {
    fail_format(fmt::format("invalid format specifier '{}' for a string", text));
  }
  const std::string shown =
      spec.precision ? value.as_string().substr(0, byte_offset(value.as_string(), *spec.precision))
                     : value.as_string();
  return pad(shown, "", spec, '<');
}

// Walks the fields of a str.format text.
class BraceFormatter {
 public:
  BraceFormatter(Interpreter& interpreter, const Arguments& arguments)
      : interpreter_(interpreter), arguments_(arguments) {}

  std::string run(std::string_view text, int depth) {
    if (depth > 2) {
      fail_format("max string recursion exceeded");
    }
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const char c = text[at];
      if ((c == '{' || c == '}') && at + 1 < text.size() && text[at + 1] == c) {
        out += c;
        at += 2;
      } else if (c == '}') {
        fail_format("single '}' encountered in format string");
      } else if (c == '{') {
        const size_t end = field_end(text, at + 1);
        const std::string part = field(text.substr(at + 1, end - at - 1), depth);
        interpreter_.charge(part.size());
        out += part;
        at = end + 1;
      } else {
        out += c;
        ++at;
      }
    }
    return out;
  }

 private:
  static size_t field_end(std::string_view text, size_t at) {
    int open = 1;
    for (; at < text.size(); ++at) {
      open += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
      if (open == 0) {
        return at;
      }
    }
    fail_format("expected '}' before end of string");
  }

  std::string field(std::string_view text, int depth) {
    const size_t colon = text.find(':');
    std::string_view name = text.substr(0, colon);
    const std::string spec = colon == text.npos ? "" : run(text.substr(colon + 1), depth + 1);
    char conversion = '\0';
    if (const size_t mark = name.find('!'); mark != name.npos) {
      conversion = mark + 1 < name.size() ? name[mark + 1] : '\0';
      if (mark + 2 != name.size() || (conversion != 'r' && conversion != 's')) {
        fail_format("expected conversion !r or !s");
      }
      name = name.substr(0, mark);
    }
    Value value = look_up(name);
    if (conversion != '\0') {
      value = Value::string(conversion == 'r' ? repr(value) : to_text(value));
    }
    return format_value(value, spec);
  }

  Value look_up(std::string_view path) {
    size_t at = std::min(path.find_first_of(".["), path.size());
    Value value = argument(path.substr(0, at));
    while (at < path.size()) {
      const bool bracket = path[at] == '[';
      const size_t end =
          bracket ? path.find(']', at) : std::min(path.find_first_of(".[", at + 1), path.size());
      if (end == path.npos) {
        fail_format("missing ']' in format string");
      }
      const std::string part(path.substr(at + 1, end - at - 1));
      value = bracket ? interpreter_.item(value, key(part)) : interpreter_.attribute(value, part);
      at = bracket ? end + 1 : end;
    }
    return value;
  }

  static Value key(const std::string& part) {
    const bool number =
        !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == part.npos;
    return number ? Value::integer(std::stoll(part)) : Value::string(part);
  }

  Value argument(std::string_view name) {
    const Value wanted = name.empty() ? Value::integer(next_++) : key(std::string(name));
    if (wanted.is(Kind::kInt)) {
      const auto index = static_cast<size_t>(wanted.as_int());
      if (index >= arguments_.positional.size()) {
        fail_format(
            fmt::format("replacement index {} out of range for positional args tuple", index));
      }
      return arguments_.positional[index];
    }
    const Value* found = arguments_.find(name);
    if (found == nullptr) {
      fail_format(fmt::format("no argument named '{}'", name));
    }
    return *found;
  }

  Interpreter& interpreter_;
  const Arguments& arguments_;
  int64_t next_ = 0;
};

// Walks the conversions of a `%` text.
class PercentFormatter {
 public:
  PercentFormatter(Interpreter& interpreter, const Value& value)
      : interpreter_(interpreter), value_(value) {}

  std::string run(std::string_view text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      if (text[at] != '%') {
        out += text[at++];
        continue;
      }
      ++at;
      const std::string part = conversion(text, at);
      interpreter_.charge(part.size());
      out += part;
    }
    const bool is_tuple = value_.is(Kind::kTuple);
    const size_t given = is_tuple ? value_.as_sequence().items.size() : 1;
    const bool may_stay = value_.is(Kind::kDict) || value_.is(Kind::kList);
    if (used_ < given && !may_stay && !(named_ && !is_tuple)) {
      fail_type("not all arguments converted during string formatting");
    }
    return out;
  }

 private:
  std::string conversion(std::string_view text, size_t& at) {
    std::optional<Value> named;
    if (at < text.size() && text[at] == '(') {
      const size_t end = text.find(')', at);
      if (end == text.npos) {
        fail_format("incomplete format key");
      }
      if (!value_.is(Kind::kDict)) {
        fail_type("format requires a mapping");
      }
      const Value* found = value_.as_dict().find(text.substr(at + 1, end - at - 1));
      if (found == nullptr) {
        fail_format(fmt::format("no key '{}'", text.substr(at + 1, end - at - 1)));
      }
      named = *found;
      named_ = true;
      at = end + 1;
    }
    Spec spec;
    bool zero = false;
    for (; at < text.size() && std::string_view("-+ #0").find(text[at]) != std::string_view::npos;
         ++at) {
      spec.align = text[at] == '-' ? '<' : spec.align;
      spec.sign = text[at] == '+' || (text[at] == ' ' && spec.sign != '+') ? text[at] : spec.sign;
      spec.alternate = spec.alternate || text[at] == '#';
      zero = zero || text[at] == '0';
    }
    spec.width = star_or_number(text, at, kMaxWidth);
    if (at < text.size() && text[at] == '.') {
      spec.precision = star_or_number(text, ++at, kMaxPrecision);
    }
    if (at >= text.size()) {
      fail_format("incomplete format");
    }
    spec.type = text[at++];
    if (zero && spec.align == '\0' &&
        std::string_view("sr").find(spec.type) == std::string_view::npos) {
      spec.fill = "0";
      spec.align = '=';
    }
    if (spec.type == '%') {
      return "%";
    }
    return convert(named ? *named : take(), spec);
  }

  int64_t star_or_number(std::string_view text, size_t& at, int64_t limit) {
    if (at >= text.size() || text[at] != '*') {
      return read_number(text, at, limit);
    }
    ++at;
    const Value value = take();
    if (!value.is_integral() || value.as_int() < 0 || value.as_int() > limit) {
      fail_format("* wants int of a fitting size");
    }
    return value.as_int();
  }

  Value take() {
    if (value_.is(Kind::kTuple)) {
      const auto& items = value_.as_sequence().items;
      if (used_ >= items.size()) {
        fail_type("not enough arguments for format string");
      }
      return items[used_++];
    }
    if (used_++ > 0) {
      fail_type("not enough arguments for format string");
    }
    return value_;
  }

  static std::string convert(const Value& value, Spec spec) {
    const char type = spec.type;
    if (type == 's' || type == 'r') {
      const std::string text = type == 'r' ? repr(value) : to_text(value);
      const std::string shown =
          spec.precision ? text.substr(0, byte_offset(text, *spec.precision)) : text;
      return pad(shown, "", spec, '>');
    }
    if (!value.is_number()) {
      fail_type(
          fmt::format("%{} format: a real number is required, not {}", type, type_name(value)));
    }
    if (is_float_type(type)) {
      return format_float(value.as_double(), spec);
    }
    if (std::string_view("diuxXo").find(type) == std::string_view::npos) {
      fail_format(fmt::format("unsupported format character '{}'", type));
    }
    spec.type = type == 'i' || type == 'u' ? 'd' : type;
    if (value.is(Kind::kFloat) && (spec.type != 'd' || !(std::abs(value.as_double()) < 9.2e18))) {
      fail_type(fmt::format("%{} format: an integer is required, not float", type));
    }
    const int64_t number =
        value.is(Kind::kFloat) ? static_cast<int64_t>(value.as_double()) : value.as_int();
    if (spec.precision) {
      return with_min_digits(number, spec);
    }
    return format_integer(number, spec);
  }

  // A precision of an integer is its least number of digits.
  static std::string with_min_digits(int64_t number, Spec spec) {
    Spec digits;
    digits.type = spec.type;
    const std::string plain = format_integer(number, digits);
    const bool negative = number < 0;
    const std::string magnitude = plain.substr(negative ? 1 : 0);
    const auto size = static_cast<int64_t>(magnitude.size());
    const auto zeros = static_cast<size_t>(std::max<int64_t>(*spec.precision - size, 0));
    return pad(std::string(zeros, '0') + magnitude, sign_of(negative, spec.sign), spec, '>');
  }

  Interpreter& interpreter_;
  const Value& value_;
  size_t used_ = 0;
  bool named_ = false;
};

}  // namespace

std::string format_percent(Interpreter& interpreter, const std::string& format,
                           const Value& value) {
  return PercentFormatter(interpreter, value).run(format);
}

std::string format_braces(Interpreter& interpreter, const std::string& format,
                          const Arguments& arguments) {
  return BraceFormatter(interpreter, arguments).run(format, 0);
}

}  // namespace graft::text::jinja

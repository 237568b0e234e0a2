#include "graft/text/jinja_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

std::string join_reprs(const std::vector<Value>& items) {
  std::string out;
  for (const Value& item : items) {
    out += out.empty() ? "" : ", ";
    out += repr(item);
  }
  return out;
}

std::string repr_pairs(const DictObject& dict) {
  std::string out;
  for (const auto& [key, value] : dict.entries) {
    out += out.empty() ? "" : ", ";
    out += repr(key) + ": " + repr(value);
  }
  return out;
}

std::string repr_sequence(const Value& value) {
  const SequenceObject& sequence = value.as_sequence();
  switch (value.kind()) {
    case Kind::kList:
      return "[" + join_reprs(sequence.items) + "]";
    case Kind::kTuple:
      return "(" + join_reprs(sequence.items) + (sequence.items.size() == 1 ? ",)" : ")");
    case Kind::kRange:
      if (sequence.step == 1) {
        return fmt::format("range({}, {})", sequence.start, sequence.stop);
      }
      return fmt::format("range({}, {}, {})", sequence.start, sequence.stop, sequence.step);
    default:
      return fmt::format("{}([{}])", sequence.type_name, join_reprs(sequence.items));
  }
}

// A namespace may hold itself; its values are not counted into any depth.
std::string repr_namespace(const NamespaceObject& object) {
  std::string out;
  for (const auto& [name, value] : object.attributes) {
    if (value.depth() > 0 || value.is(Kind::kNamespace)) {
      fail_type("a namespace with nested values cannot be printed");
    }
    out += out.empty() ? "" : ", ";
    out += repr_string(name) + ": " + repr(value);
  }
  return "<Namespace {" + out + "}>";
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  std::string take() { return std::move(out_); }

  void write(const Value& value, int level) {
    switch (value.kind()) {
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat:
        out_ += scalar(value);
        return;
      case Kind::kString:
        write_string(value.as_string());
        return;
      case Kind::kList:
      case Kind::kTuple:
        write_list(value.as_sequence().items, level);
        return;
      case Kind::kDict:
        write_dict(value.as_dict(), level);
        return;
      default:
        fail_type(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
    }
  }

 private:
  static std::string scalar(const Value& value) {
    switch (value.kind()) {
      case Kind::kNone:
        return "null";
      case Kind::kBool:
        return value.as_int() != 0 ? "true" : "false";
      case Kind::kInt:
        return std::to_string(value.as_int());
      default:
        break;
    }
    const double number = value.as_double();
    if (std::isnan(number)) {
      return "NaN";
    }
    return std::isinf(number) ? (number > 0 ? "Infinity" : "-Infinity") : float_repr(number);
  }

  void break_line(int level) {
    if (style_.indent) {
      out_ += '\n';
      for (int i = 0; i < level; ++i) {
        out_ += *style_.indent;
      }
    }
  }

  void write_list(const std::vector<Value>& items, int level) {
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      out_ += i == 0 ? "" : style_.item_separator;
      break_line(level + 1);
      write(items[i], level + 1);
    }
    if (!items.empty()) {
      break_line(level);
    }
    out_ += ']';
  }

  void write_dict(const DictObject& dict, int level) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) {
      entries.push_back(&entry);
    }
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return less(a->first, b->first); });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      out_ += i == 0 ? "" : style_.item_separator;
      break_line(level + 1);
      write_key(entries[i]->first);
      out_ += style_.key_separator;
      write(entries[i]->second, level + 1);
    }
    if (!entries.empty()) {
      break_line(level);
    }
    out_ += '}';
  }

  void write_key(const Value& key) {
    if (key.is(Kind::kString)) {
      write_string(key.as_string());
    } else if (key.is_number() || key.is(Kind::kNone)) {
      out_ += '"' + scalar(key) + '"';
    } else {
      fail_type(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
    }
  }

  void write_string(std::string_view text) {
    out_ += '"';
    for (size_t offset = 0; offset < text.size();) {
      const size_t begin = offset;
      const char32_t code = next_code_point(text, offset);
      static constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
      static constexpr std::string_view kLetters = "\"\\nrtfb";
      const size_t found = code < 0x80 ? kEscaped.find(static_cast<char>(code)) : kEscaped.npos;
      if (found != kEscaped.npos) {
        out_ += '\\';
        out_ += kLetters[found];
      } else if (code < 0x20 || (style_.ensure_ascii && code >= 0x7F && code <= 0xFFFF)) {
        out_ += code == 0x7F ? "\x7F" : fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
      } else if (style_.ensure_ascii && code > 0xFFFF) {
        const auto rest = static_cast<uint32_t>(code) - 0x10000;
        out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
      } else {
        out_ += text.substr(begin, offset - begin);
      }
    }
    out_ += '"';
  }

  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value > 0 ? "inf" : "-inf";
  }
  // The shortest digits that read back equal, as d.ddde±xx; Python writes an exponent below 1e-4
  // and from 1e16 on.
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t mark = text.find('e');
  const int exponent = std::stoi(text.substr(mark + 1));
  std::string digits = text.substr(0, mark);
  const std::string sign = digits[0] == '-' ? "-" : "";
  digits.erase(0, sign.size());
  if (digits.size() > 1) {
    digits.erase(1, 1);  // the point
  }
  if (exponent < -4 || exponent >= 16) {
    const std::string tail = digits.size() > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02d}", sign, digits[0], tail, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  }
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string repr_string(std::string_view text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t code = next_code_point(text, offset);
    const auto number = static_cast<uint32_t>(code);
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      out += '\\';
      out += static_cast<char>(code);
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
    } else if (is_printable(code)) {
      out += text.substr(begin, offset - begin);
    } else if (code < 0x100) {
      out += fmt::format("\\x{:02x}", number);
    } else {
      out += code < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
    }
  }
  return out + quote;
}

std::string repr(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.as_int() != 0 ? "True" : "False";
    case Kind::kInt:
      return std::to_string(value.as_int());
    case Kind::kFloat:
      return float_repr(value.as_double());
    case Kind::kString:
      return value.is_markup() ? fmt::format("Markup({})", repr_string(value.as_string()))
                               : repr_string(value.as_string());
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kDictView:
      return repr_sequence(value);
    case Kind::kDict:
      return "{" + repr_pairs(value.as_dict()) + "}";
    case Kind::kNamespace:
      return repr_namespace(value.as_namespace());
    case Kind::kLoop:
      return fmt::format("<LoopContext {}/{}>", value.as_loop().index0 + 1,
                         value.as_loop().items.size());
    case Kind::kCallable:
      if (value.as_callable().type_name() == "Macro") {
        return fmt::format("<Macro {}>", repr_string(value.as_callable().name));
      }
      break;
    case Kind::kGenerator:
      throw Fault{"type",
                  "expected a value that can be printed, got a generator",
                  "add `| list` behind the filter",
                  {},
                  {}};
  }
  fail_type(fmt::format("expected a value that can be printed, got a {}", type_name(value)));
}

std::string to_text(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return {};
    case Kind::kString:
      return value.as_string();
    default:
      return repr(value);
  }
}

std::string to_json(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace graft::text::jinja

// How values become text: Python's str and repr, json.dumps, `%` and str.format.
// Internal to graft/text.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "graft/text/jinja_object.h"
#include "graft/text/jinja_value.h"

namespace graft::text::jinja {

// Python's str(value).
// Throws   Fault for what prints as a memory address.
std::string to_text(const Value& value);
std::string repr(const Value& value);
std::string float_repr(double value);
std::string repr_string(std::string_view text);

struct JsonStyle {
  std::optional<std::string> indent;  // text of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};

// Python's json.dumps.
// Throws   Fault for a value that JSON does not know.
std::string to_json(const Value& value, const JsonStyle& style);

// Python's `format % value`.
// Throws   Fault.
std::string format_percent(Interpreter& interpreter, const std::string& format, const Value& value);
// Python's format.format(*positional, **named).
// Throws   Fault.
std::string format_braces(Interpreter& interpreter, const std::string& format,
                          const Arguments& arguments);

}  // namespace graft::text::jinja

// Reading the components of tokenizer.json: required and optional fields, with errors that name the
// component.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/text/json_view.h"
#include "graft/text/unicode.h"

namespace graft::text {

[[noreturn]] inline void refuse_tokenizer(std::string_view reason, const std::string& text,
                                          std::string_view hint = {}) {
  throw FormatError("text.tokenizer", reason, text, hint);
}

inline JsonView required_field(const JsonView& object, std::string_view component,
                               std::string_view field) {
  const auto found = object.find(field);
  if (!found) {
    refuse_tokenizer("field-missing",
                     fmt::format("{}: expected the field `{}`, got none", component, field));
  }
  return *found;
}

// The field's value, or `fallback` where it is missing or null.
inline bool bool_field(const JsonView& object, std::string_view field, bool fallback) {
  const auto found = object.find(field);
  return found && !found->is_null() ? found->boolean(field) : fallback;
}

inline std::string text_field(const JsonView& object, std::string_view component,
                              std::string_view field) {
  return std::string(required_field(object, component, field).text(field));
}

// A field that holds one character.
inline char32_t char_field(const JsonView& object, std::string_view component,
                           std::string_view field) {
  const std::string text = text_field(object, component, field);
  if (count_chars(text) != 1) {
    refuse_tokenizer("field-range", fmt::format("{}: `{}`: expected one character, got `{}`",
                                                component, field, text));
  }
  size_t pos = 0;
  return next_char(text, pos);
}

inline int64_t integer_field(const JsonView& object, std::string_view component,
                             std::string_view field, int64_t least, int64_t most) {
  const int64_t value = required_field(object, component, field).integer(field);
  if (value < least || value > most) {
    refuse_tokenizer("field-range", fmt::format("{}: `{}`: expected {} to {}, got {}", component,
                                                field, least, most, value));
  }
  return value;
}

// The `type` of a component.
inline std::string_view component_type(const JsonView& object, std::string_view role) {
  if (!object.is_object()) {
    refuse_tokenizer("component", fmt::format("{}: expected an object, got another kind", role));
  }
  return required_field(object, role, "type").text("type");
}

[[noreturn]] inline void unknown_component(std::string_view role, std::string_view type,
                                           std::string_view known) {
  refuse_tokenizer("component", fmt::format("{}: expected one of {}, got `{}`", role, known, type));
}

}  // namespace graft::text

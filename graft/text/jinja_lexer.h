// Splits a template into data and tokens, with trim_blocks and lstrip_blocks on, as transformers
// sets up jinja2. Internal to graft/text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graft/text/jinja_value.h"

namespace graft::text::jinja {

enum class TokenKind {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // decoded for strings, digits without underscores for numbers
  Position at;

  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
  bool is_operator(std::string_view symbol) const {
    return kind == TokenKind::kOperator && text == symbol;
  }
};

// Returns the tokens, ending with one kEnd.
// Throws   Fault `syntax` with line and column.
std::vector<Token> tokenize(std::string_view source);

}  // namespace graft::text::jinja

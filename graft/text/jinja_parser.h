// Builds the syntax tree with jinja2's grammar and precedence. Internal to graft/text.
#pragma once

#include <string_view>

#include "graft/text/jinja_ast.h"

namespace graft::text::jinja {

// Throws   Fault `syntax`, `unsupported` (a filter, test or tag by name) or `budget`, with line
// and column.
Block parse_template(std::string_view source);

}  // namespace graft::text::jinja

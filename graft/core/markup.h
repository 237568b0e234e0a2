// Text inside HTML and SVG.
#pragma once

#include <string>
#include <string_view>

namespace graft {

// `& < > " '` as entities, as markupsafe writes them.
std::string escape_html(std::string_view text);

}  // namespace graft

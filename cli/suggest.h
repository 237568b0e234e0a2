// "Did you mean …?"
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::cli {

// The candidate within two edits of `word` that is nearest, or nothing.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace graft::cli

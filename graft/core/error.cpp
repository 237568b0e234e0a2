#include "graft/core/error.h"

#include <fmt/format.h>

namespace graft {

namespace {

std::string compose(std::string_view where, std::string_view message, std::string_view hint) {
  if (hint.empty()) {
    return fmt::format("[{}] {}", where, message);
  }
  return fmt::format("[{}] {}\nhint: {}", where, message, hint);
}

}  // namespace

Error::Error(std::string_view where, std::string_view reason, std::string_view message,
             std::string_view hint)
    : std::runtime_error(compose(where, message, hint)),
      code_(fmt::format("{}.{}", where, reason)),
      where_(where),
      hint_(hint) {}

}  // namespace graft

#include "graft/core/file_status.h"

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft {

namespace fs = std::filesystem;

namespace {

// A path may be a whole text given in its place: an error quotes its beginning.
constexpr size_t kMaxQuotedBytes = 200;

fs::file_type type_of(const fs::path& path) {
  std::error_code reason;
  const fs::file_type type = fs::status(path, reason).type();
  if (type == fs::file_type::none) {
    throw NotFound("core.file", "status",
                   fmt::format("`{}`: expected a path that can be followed, got: {}",
                               path.string().substr(0, kMaxQuotedBytes), reason.message()));
  }
  return type;
}

}  // namespace

bool is_file(const fs::path& path) { return type_of(path) == fs::file_type::regular; }
bool is_folder(const fs::path& path) { return type_of(path) == fs::file_type::directory; }
bool is_there(const fs::path& path) { return type_of(path) != fs::file_type::not_found; }

}  // namespace graft

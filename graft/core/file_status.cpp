#include "graft/core/file_status.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

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

std::optional<std::string> read_regular_file(const fs::path& path, size_t max_bytes) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  struct stat facts {};
  if (file < 0 || fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    if (file >= 0) {
      close(file);
    }
    return std::nullopt;
  }
  constexpr size_t kPiece = 64 << 10;
  std::string content;
  ssize_t size = 1;
  while (size > 0 && content.size() < max_bytes) {
    const size_t known = content.size(), wanted = std::min(kPiece, max_bytes - known);
    content.resize(known + wanted);
    do {
      size = read(file, content.data() + known, wanted);
    } while (size < 0 && errno == EINTR);
    content.resize(known + static_cast<size_t>(std::max<ssize_t>(size, 0)));
  }
  close(file);
  return size < 0 ? std::nullopt : std::optional(std::move(content));
}

bool is_file(const fs::path& path) { return type_of(path) == fs::file_type::regular; }
bool is_folder(const fs::path& path) { return type_of(path) == fs::file_type::directory; }
bool is_there(const fs::path& path) { return type_of(path) != fs::file_type::not_found; }

}  // namespace graft

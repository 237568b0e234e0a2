#include "graft/hub/cache.h"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxPathBytes = 1024;

bool is_repo_part(std::string_view part) {
  if (part.empty() || part.size() > 96) {
    return false;
  }
  const auto is_edge = [](char c) { return c == '-' || c == '.'; };
  if (is_edge(part.front()) || is_edge(part.back())) {
    return false;
  }
  if (part.find("--") != std::string_view::npos || part.find("..") != std::string_view::npos) {
    return false;
  }
  return std::all_of(part.begin(), part.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
}

// A revision becomes a path below refs/: it may hold slashes, but never leave that folder.
bool is_revision(std::string_view revision) {
  if (revision.empty() || revision.size() > 255 || revision.front() == '/' ||
      revision.back() == '/') {
    return false;
  }
  if (std::any_of(revision.begin(), revision.end(),
                  [](unsigned char c) { return c < 0x21 || c == 0x7f || c == '\\'; })) {
    return false;
  }
  return revision.find("..") == std::string_view::npos &&
         revision.find("//") == std::string_view::npos;
}

std::optional<std::string> read_ref(const fs::path& file) {
  const auto commit = read_regular_file(file, 40);
  return commit && is_commit(*commit) ? commit : std::nullopt;
}

}  // namespace

bool is_repo_id(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) {
    return is_repo_part(text);
  }
  return is_repo_part(text.substr(0, slash)) && is_repo_part(text.substr(slash + 1));
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

bool is_safe_path(std::string_view path) {
  if (path.empty() || path.size() > kMaxPathBytes || path.front() == '/') {
    return false;
  }
  if (std::any_of(path.begin(), path.end(),
                  [](unsigned char c) { return c < 0x20 || c == '\\' || c == 0x7f || c == ':'; })) {
    return false;
  }
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const auto part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) {
      return false;
    }
    start = end + 1;
  }
  return true;
}

std::string repo_folder_name(RepoType type, std::string_view repo_id) {
  std::string name = type == RepoType::kModel ? "models--" : "kernels--";
  for (const char c : repo_id) {
    name += c == '/' ? std::string("--") : std::string(1, c);
  }
  return name;
}

std::optional<CachedSnapshot> find_snapshot(const fs::path& cache, RepoType type,
                                            std::string_view repo_id, std::string_view revision) {
  if (!is_repo_id(repo_id)) {
    throw InvalidArgument("hub.cache", "repo-id",
                          fmt::format("repo_id: expected `org/name`, got `{}`", repo_id));
  }
  const std::string_view wanted = revision.empty() ? std::string_view("main") : revision;
  if (!is_revision(wanted)) {
    throw InvalidArgument(
        "hub.cache", "revision",
        fmt::format("revision of `{}`: expected a branch, tag or commit, got `{}`", repo_id,
                    wanted));
  }
  const fs::path repo = cache / repo_folder_name(type, repo_id);
  const auto commit =
      is_commit(wanted) ? std::optional<std::string>(wanted) : read_ref(repo / "refs" / wanted);
  if (!commit || !fs::is_directory(repo / "snapshots" / *commit)) {
    return std::nullopt;
  }
  return CachedSnapshot{repo / "snapshots" / *commit, *commit};
}

}  // namespace graft::hub

#include "graft/hub/history.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxKept = 1000;

std::string key_of(const MovingName& name) {
  return fmt::format("{} {} {} {}", name.endpoint,
                     name.type == RepoType::kKernel ? "kernel" : "model", name.repo_id, name.ref);
}

std::filesystem::path file_of(const MovingName& name) {
  return private_folder() / "history" / sha256_of(key_of(name));
}

}  // namespace

// A file holds the name, then one commit a line.
std::vector<std::string> seen_commits(const MovingName& name) {
  std::ifstream in(file_of(name));
  std::vector<std::string> commits;
  std::string line;
  if (!std::getline(in, line) || line != key_of(name)) {
    return commits;
  }
  while (std::getline(in, line) && is_commit(line)) {
    commits.push_back(line);
  }
  return commits;
}

void require_no_rollback(const MovingName& name, std::string_view commit) {
  const auto commits = seen_commits(name);
  if (commits.empty() || commits.back() == commit ||
      std::find(commits.begin(), commits.end(), commit) == commits.end()) {
    return;
  }
  throw IntegrityError(
      "hub.revision", "rollback",
      fmt::format("`{}`@{}: expected commit {} or a new one, got {}, which it stood at before",
                  name.repo_id, name.ref, commits.back(), commit),
      fmt::format("to load it on purpose name the commit: `{}@{}`", name.repo_id, commit));
}

void remember_commit(const MovingName& name, std::string_view commit) {
  auto commits = seen_commits(name);
  if (!commits.empty() && commits.back() == commit) {
    return;
  }
  if (!commits.empty()) {
    log()->info("`{}`@{} moved from {} to {}", name.repo_id, name.ref, commits.back(), commit);
  }
  std::erase(commits, commit);
  commits.emplace_back(commit);
  if (commits.size() > kMaxKept) {
    commits.erase(commits.begin());
  }
  try {
    write_atomically(file_of(name),
                     fmt::format("{}\n{}\n", key_of(name), fmt::join(commits, "\n")));
  } catch (const Error& error) {
    log()->debug("not remembered: {}", error.what());
  }
}

}  // namespace graft::hub

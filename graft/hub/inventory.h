// What lies in a cache: whose it is, what it takes, what may go. Reads and removes; the Hub is not asked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/cache.h"

namespace graft::hub {

struct CachedCommit {
  std::string commit;
  std::vector<std::string> refs;      // branches and tags that were last seen here
  std::vector<std::string> variants;  // build variants of a kernel that are here
  size_t num_files = 0;
  uint64_t size_bytes = 0;  // of its files; another commit may share them
};

struct CachedRepository {
  RepoType type = RepoType::kModel;
  std::string repo_id;
  std::filesystem::path folder;
  std::vector<CachedCommit> commits;  // by name
  uint64_t size_bytes = 0;            // on disk, each file once
};

// The repositories of a cache by type and name. What is none is passed over; a cache that is not there is
// empty. Reads no file's content. Throws nothing.
std::vector<CachedRepository> list_cached(const std::filesystem::path& cache, RepoType type);

// Paths that go, in an order in which nothing that stays ever leads to what is gone.
struct Removal {
  std::vector<std::filesystem::path> paths;
  uint64_t freed_bytes = 0;
};

// A whole repository, or one commit of it: its names, its links, and the blobs that no other commit uses.
Removal plan_removal(const CachedRepository& repository);
Removal plan_removal(const CachedRepository& repository, const CachedCommit& commit);

// What nothing uses: files that nobody finishes any more, blobs that for an hour no commit has linked to,
// listings of commits that are gone.
//
// unnamed_too   also commits that no branch and no tag names. Python's `kernels` loads a version by its
//               commit and names none, so that is not the default.
Removal plan_prune(const CachedRepository& repository, bool unnamed_too);

// Throws   Error `hub.download.disk` for the first path that stays.
void remove(const Removal& removal);

// Every file of a commit that is here, read and hashed.
struct Verdict {
  size_t num_right = 0;
  std::vector<std::string> damaged;  // other bytes than its blob's name or the listing says
  std::vector<std::string> unknown;  // a plain file that nothing vouches for
  std::vector<std::string> missing;  // links that lead nowhere
};
Verdict verify_commit(const CachedRepository& repository, const CachedCommit& commit);

}  // namespace graft::hub

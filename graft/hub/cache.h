// The cache of huggingface_hub on disk: what Python wrote is found here, and nothing is asked of
// the network.
//
//   <cache>/models--org--name/refs/<revision>          commit hash
//   <cache>/models--org--name/snapshots/<commit>/…     links to blobs
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub {

enum class RepoType { kModel, kKernel };

// A snapshot that lies in the cache.
struct CachedSnapshot {
  std::filesystem::path folder;
  std::string commit;  // 40 hexadecimal digits
};

// True for `org/name` or `name` in the characters that the Hub allows: letters, digits, `-`, `_`,
// `.`; no part may begin or end with `-` or `.`, nor hold `--` or `..`.
bool is_repo_id(std::string_view text);

// True for 40 lower-case hexadecimal digits.
bool is_commit(std::string_view text);

// True for a relative, plain path of a repository that may become a path in the cache: no `..`, no
// empty part, no control character, `\\` or `:`.
bool is_safe_path(std::string_view path);

// The repository's folder in a cache, e.g. `models--org--name`.
std::string repo_folder_name(RepoType type, std::string_view repo_id);

// Finds the snapshot of a revision (branch, tag or commit; empty: `main`) without any request.
// Returns nothing when the cache does not hold it.
// Throws InvalidArgument when repo_id or revision cannot be one (`..`, an absolute path, control
// characters).
std::optional<CachedSnapshot> find_snapshot(const std::filesystem::path& cache, RepoType type,
                                            std::string_view repo_id,
                                            std::string_view revision = {});

}  // namespace graft::hub

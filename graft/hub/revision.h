// Which commit of a kernel repository a person means.
//
//   (nothing)      v1 of a kernel repository, its highest version where it has no v1; main of an
//                  older model repository
//   v2             the branch of that version, as it stands now
//   >=0.1,<0.2     the highest tag `v…` of a model repository that fits
//   v0.1.0, main   a tag or branch        0123…cdef   a commit
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "graft/hub/client.h"

namespace graft::hub {

struct Revision {
  std::string commit;
  std::string ref;                // branch or tag it came from; empty for a commit
  std::optional<int64_t> newest;  // the highest version branch, when it is above the one taken
};

// `v7` -> 7: `v` and decimal digits, nothing else.
std::optional<int64_t> version_branch(std::string_view ref);

// Asks the Hub: at most one request; none for a commit.
// Throws   NotFound `hub.revision.version` or `.tag` naming what there is; InvalidArgument
//          `hub.revision.specifier`; what Client throws.
Revision resolve_revision(const Client& client, RepoType type, std::string_view repo_id,
                          std::string_view ref);

// The same from the cache alone, for a snapshot that is there. A version that was fetched by its
// commit (as `kernels` does) is found by the number in its metadata.json, the newest first.
// Throws   InvalidArgument for names that cannot be one.
std::optional<Revision> find_revision(const std::filesystem::path& cache, RepoType type,
                                      std::string_view repo_id, std::string_view ref);

}  // namespace graft::hub

// What a commit holds, remembered in the cache: a commit never changes, so nothing is asked twice.
//
//   trees/<commit>.json         every file, as huggingface_hub writes and reads it
//   trees/<commit>.graft.json   of a kernel repository only: the build variants' names and the
//   files of those
//                               that were fetched; Python never looks at it
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graft/hub/client.h"

namespace graft::hub {

// Every file of the commit; nothing where the listing is missing, broken or of another format.
std::optional<std::vector<RepoFile>> read_tree(const std::filesystem::path& repo,
                                               const std::string& commit);

// Writes it for Python and for us. A cache that cannot be written is left as it is.
void write_tree(const std::filesystem::path& repo, const std::string& commit,
                const std::vector<RepoFile>& files);

struct KernelListing {
  std::vector<std::string> variants;                   // folders of build/, sorted
  std::map<std::string, std::vector<RepoFile>> files;  // of some variants: all below build/<name>/
};

// What the files of build/ say: all variants, and the files of each.
KernelListing kernel_listing_of(const std::vector<RepoFile>& files);

// What is known of a kernel repository's commit, from our own file or from Python's.
std::optional<KernelListing> read_kernel_listing(const std::filesystem::path& repo,
                                                 const std::string& commit);
void write_kernel_listing(const std::filesystem::path& repo, const std::string& commit,
                          const KernelListing& listing);

}  // namespace graft::hub

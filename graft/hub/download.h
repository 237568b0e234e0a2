// Files of a commit into the cache. Nothing gets its final name before size and hash are right.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/client.h"

namespace graft::hub {

// Called from the thread that downloads, at most about ten times a second and once at the end of a
// file.
using Progress = std::function<void(const RepoFile& file, uint64_t bytes_done)>;

struct DownloadOptions {
  std::filesystem::path cache;  // empty: cache_folder() or kernels_cache_folder()
  // Shell patterns (`*` and `?` cross `/`); empty: every file.
  std::vector<std::string> allow_patterns;
  Progress progress;
};

// Brings the files of a revision into the cache and returns the snapshot, in the layout of
// huggingface_hub.
//
//   revision -> commit -> list of (path, size, hash) of that commit -> every missing file
//
// Files that lie in the cache with the right size are not asked for again. A transfer that breaks
// goes on where it stood, within this call and after a killed process
// (`blobs/<hash>.graft-incomplete`); one downloader per file across processes. The ref file is
// written last.
// Throws   NotFound, NetworkError, FormatError as Client; IntegrityError when size or
// hash is wrong after a
//          second try; Error `hub.download.disk` with needed and free bytes.
// Blocking, network, disk.
CachedSnapshot download_snapshot(const Client& client, RepoType type, std::string_view repo_id,
                                 std::string_view revision, const DownloadOptions& options = {});

// True when `path` matches a shell pattern as huggingface_hub reads it; a pattern that ends in `/`
// means everything below.
bool matches_pattern(std::string_view path, std::string_view pattern);

}  // namespace graft::hub

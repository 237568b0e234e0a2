// Files of a commit into the cache. Nothing gets its final name before size and hash are right, and
// what lies there is hashed before it is used again.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/client.h"

namespace graft::hub {

// How far a call is. Called from one thread at a time, about ten times a second and once per file
// that is done.
struct DownloadProgress {
  const RepoFile& file;     // that these bytes were for
  uint64_t done_bytes = 0;  // of all files of the call, those that were there already included
  uint64_t total_bytes = 0;
  size_t files_done = 0;
  size_t files_total = 0;
  bool file_is_done = false;
};
using Progress = std::function<void(const DownloadProgress&)>;

struct DownloadOptions {
  std::filesystem::path cache;  // empty: cache_folder() or kernels_cache_folder()
  // Shell patterns (`*` and `?` cross `/`); empty: every file.
  std::vector<std::string> allow_patterns;
  Progress progress;
  int connections = 8;   // at once, over all files
  bool dry_run = false;  // nothing is written; the answer says what would come
};

// A commit in the cache, or of a dry run one that would be there.
struct DownloadedSnapshot : CachedSnapshot {
  std::vector<RepoFile> files;  // that were asked for; empty where nobody can list them
  uint64_t size_bytes = 0;      // of all of them
  // Of those that were not there before, with that size: fetched, or of a dry run to be fetched.
  uint64_t bytes_fetched = 0;
};

// Brings the files of a revision into the cache and returns the snapshot, in the layout of
// huggingface_hub.
//
//   revision -> commit -> list of (path, size, hash) of that commit -> every missing file
//
// A commit whose listing and files are in the cache costs no request; a name costs one. Without a
// network (HF_HUB_OFFLINE, or nobody answers) the commit is taken that the cache knows, if all its
// files are there.
// Files come over several connections, large ones in ranges. A transfer that breaks goes on where
// it stood, within this call and after a killed process; one downloader per file across processes.
// A file in the cache whose hash is wrong is fetched anew, with a warning. The ref is written last.
//
// Throws   NotFound, NetworkError, FormatError as Client; NotFound `hub.download.incomplete`
//          offline, `hub.download.no-match` where no file is like any pattern; IntegrityError when the hash is wrong after a second try, or offline for a
//          damaged file; Error `hub.download.disk` with needed and free bytes.
// Blocking, network, disk.
DownloadedSnapshot download_snapshot(const Client& client, RepoType type, std::string_view repo_id,
                                     std::string_view revision,
                                     const DownloadOptions& options = {});

// Where files go and whose they are.
struct FileSource {
  const Client& client;
  RepoType type;
  std::string repo_id;
  std::string commit;
  std::filesystem::path repo;  // the repository's folder in the cache
};

// Brings these files of a commit into its snapshot; the lower half of download_snapshot.
void download_files(const FileSource& source, const std::vector<RepoFile>& files,
                    const Progress& progress = {}, int connections = 8);

// Notes which commit a branch or tag was last seen at. A cache that cannot be written stays as it
// is.
void write_ref(const std::filesystem::path& repo, std::string_view ref, const std::string& commit);

// True when `path` matches a shell pattern as huggingface_hub reads it; a pattern that ends in `/`
// means everything below.
bool matches_pattern(std::string_view path, std::string_view pattern);

}  // namespace graft::hub

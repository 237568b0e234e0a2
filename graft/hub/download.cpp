#include "graft/hub/download.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <exception>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/log.h"
#include "graft/hub/blob_fetch.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"
#include "graft/hub/leftovers.h"
#include "graft/hub/listing.h"
#include "graft/hub/payload.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr auto kLockTimeout = std::chrono::minutes(30);
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

// The sum over all files, told to the caller one call at a time.
class Tally {
 public:
  Tally(const std::vector<RepoFile>& files, const Progress& progress)
      : progress_(progress), done_(files.size(), 0), files_(files) {
    for (const RepoFile& file : files) {
      total_bytes_ += file.size_bytes;
    }
  }

  void report(size_t index, uint64_t file_bytes, bool is_done) {
    const std::lock_guard lock(mutex_);
    done_bytes_ += file_bytes - done_[index];
    done_[index] = file_bytes;
    files_done_ += is_done ? 1 : 0;
    const auto now = std::chrono::steady_clock::now();
    if (progress_ && (is_done || now - last_ > kProgressInterval)) {
      last_ = now;
      progress_({files_[index], done_bytes_, total_bytes_, files_done_, files_.size(), is_done});
    }
  }

 private:
  const Progress& progress_;
  std::mutex mutex_;
  std::vector<uint64_t> done_;
  const std::vector<RepoFile>& files_;
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  size_t files_done_ = 0;
  std::chrono::steady_clock::time_point last_;
};

// The link of a snapshot is there and leads to the right bytes.
bool is_right(const fs::path& file, const RepoFile& wanted) {
  std::error_code status;
  return fs::file_size(file, status) == wanted.size_bytes && !status &&
         has_content_remembered(file, wanted.content_id());
}

// Something has this name: a link that leads nowhere, too.
bool is_anything(const fs::path& path) {
  std::error_code status;
  return fs::exists(fs::symlink_status(path, status));
}

// snapshots/<commit>/<path> -> ../../blobs/<hash>, or a copy where there are no links.
void link_blob(const fs::path& blob, const fs::path& pointer) {
  make_folders(pointer.parent_path());
  const fs::path made = temporary_beside(pointer);
  std::error_code status = std::make_error_code(std::errc::not_supported);
  if (!symlinks_disabled()) {
    fs::create_symlink(blob.lexically_relative(pointer.parent_path()), made, status);
  }
  if (status) {
    fs::copy_file(blob, made, fs::copy_options::overwrite_existing, status);
    if (status) {
      errno = status.value();
      unlink(made.c_str());
      throw_disk(pointer, fs::file_size(blob, status));
    }
    sync_file(made);
  }
  move_into_place(made, pointer);
}

// Several files at once; the first error ends all of them.
class Downloader {
 public:
  Downloader(const FileSource& source, const std::vector<RepoFile>& files, const Progress& progress,
             int connections)
      : source_(source), files_(files), tally_(files, progress) {
    const auto most = static_cast<size_t>(std::clamp(connections, 1, 32));
    threads_ = std::min(most, std::max<size_t>(1, files.size()));
    connections_per_file_ = static_cast<int>(most / threads_);
  }

  void run() {
    std::vector<std::thread> helpers;
    for (size_t i = 1; i < threads_; ++i) {
      helpers.emplace_back([this] { work(); });
    }
    work();
    for (auto& helper : helpers) {
      helper.join();
    }
    if (failure_) {
      std::rethrow_exception(failure_);
    }
  }

 private:
  void work() {
    for (size_t index = next_++; index < files_.size() && !stop_; index = next_++) {
      try {
        fetch(index);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        failure_ = stop_.exchange(true) ? failure_ : std::current_exception();
      }
    }
  }

  void fetch(size_t index) {
    const RepoFile& file = files_[index];
    const fs::path pointer = source_.repo / "snapshots" / source_.commit / file.path;
    if (!is_right(pointer, file)) {
      install(index, pointer);
    }
    tally_.report(index, file.size_bytes, /*is_done=*/true);
  }

  void install(size_t index, const fs::path& pointer) {
    const RepoFile& file = files_[index];
    const std::string& id = file.content_id();
    const fs::path blob = source_.repo / "blobs" / id;
    const FileLock lock(
        source_.repo.parent_path() / ".locks" / source_.repo.filename() / (id + ".lock"),
        kLockTimeout,
        [&] { log()->info("waiting for another process that downloads `{}`", file.path); });
    if (is_right(pointer, file)) {
      return;
    }
    const bool blob_is_right = is_right(blob, file);
    if (!blob_is_right) {
      give_up_damaged(file, is_anything(blob) ? blob : pointer);
    } else if (is_anything(pointer)) {
      log()->warn("{}; linking it anew", damage(file));
    }
    std::error_code status;
    if (fs::is_directory(fs::symlink_status(pointer, status))) {
      fs::remove_all(pointer, status);  // a link is replaced in one step
    }
    if (!blob_is_right) {
      fetch_blob({source_, file, blob, connections_per_file_, stop_,
                  [&](uint64_t done) { tally_.report(index, done, /*is_done=*/false); }});
    }
    link_blob(blob, pointer);
  }

  std::string damage(const RepoFile& file) const {
    return fmt::format("`{}` `{}`: expected hash {}, the cache holds other bytes", source_.repo_id,
                       file.path, file.content_id());
  }

  // Damage is said, and heals only where the right bytes can be had.
  void give_up_damaged(const RepoFile& file, const fs::path& damaged) const {
    if (!is_anything(damaged)) {
      return;
    }
    if (offline()) {
      throw IntegrityError("hub.cache", "damaged", damage(file),
                           "unset HF_HUB_OFFLINE: the file is then fetched anew");
    }
    log()->warn("{}; fetching it anew", damage(file));
    std::error_code status;
    fs::remove_all(damaged, status);  // links are not followed
  }

  const FileSource& source_;
  const std::vector<RepoFile>& files_;
  Tally tally_;
  size_t threads_ = 1;
  int connections_per_file_ = 1;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

struct KnownCommit {
  std::string commit;
  bool asked = false;  // the Hub said so just now
};

// The commit of a revision: the Hub's word, or without a Hub the cache's.
KnownCommit commit_of(const FileSource& where, const std::string& wanted) {
  if (is_commit(wanted)) {
    return {wanted, false};
  }
  try {
    return {where.client.resolve_commit(where.type, where.repo_id, wanted), true};
  } catch (const NetworkError& error) {
    const auto cached = find_snapshot(where.repo.parent_path(), where.type, where.repo_id, wanted);
    if (!cached) {
      throw;
    }
    if (!offline()) {
      log()->warn("{}; using what the cache holds of `{}`", error.what(), where.repo_id);
    }
    return {cached->commit, false};
  }
}

std::vector<RepoFile> chosen_files(const FileSource& source, std::vector<RepoFile> files,
                                   const std::vector<std::string>& patterns) {
  if (patterns.empty()) {
    return files;
  }
  const size_t num_files = files.size();
  std::erase_if(files, [&](const RepoFile& file) {
    return std::none_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
      return matches_pattern(file.path, pattern);
    });
  });
  if (files.empty()) {
    throw NotFound(
        "hub.download", "no-match",
        fmt::format("`{}`@`{}`: expected files like `{}`, got none among {}", source.repo_id,
                    source.commit, fmt::join(patterns, "`, `"), num_files));
  }
  return files;
}

// By their sizes: hashes are looked at when they are fetched or used.
uint64_t missing_bytes(const FileSource& source, const std::vector<RepoFile>& files) {
  uint64_t bytes = 0;
  for (const RepoFile& file : files) {
    const auto is_here = [&](const fs::path& path) {
      std::error_code status;
      return fs::file_size(path, status) == file.size_bytes && !status;
    };
    if (!is_here(source.repo / "snapshots" / source.commit / file.path) &&
        !is_here(source.repo / "blobs" / file.content_id())) {
      bytes += file.size_bytes;
    }
  }
  return bytes;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string what_of(const FileSource& source) {
  return fmt::format("files of `{}`@`{}`", source.repo_id, source.commit);
}

// Names that differ in case alone are one name on some file systems.
void require_room_for_names(const FileSource& source, const std::vector<RepoFile>& files) {
  require_distinct_paths(files, what_of(source));
  std::map<std::string, std::string> seen;
  for (const RepoFile& file : files) {
    const auto [twin, is_new] = seen.emplace(lower(file.path), file.path);
    if (!is_new && ignores_case(source.repo.parent_path())) {
      throw IncompatibleError(
          "hub.download", "case",
          fmt::format("`{}`: expected names that this file system tells apart, got `{}` and `{}`",
                      source.repo_id, twin->second, file.path),
          "name a cache on another file system with HF_HUB_CACHE or KERNELS_CACHE");
    }
  }
}

void require_complete(const FileSource& source, const std::vector<RepoFile>& files) {
  for (const RepoFile& file : files) {
    std::error_code status;
    const auto pointer = source.repo / "snapshots" / source.commit / file.path;
    if (!fs::exists(pointer, status)) {
      throw NotFound("hub.download", "incomplete",
                     fmt::format("`{}`@`{}`: expected `{}` in the cache, got nothing, and "
                                 "HF_HUB_OFFLINE is set",
                                 source.repo_id, source.commit, file.path),
                     "unset HF_HUB_OFFLINE to fetch the rest");
    }
  }
}

// The files of the commit by the Hub's word, kept for next time.
std::vector<RepoFile> ask_for_listing(const FileSource& source, bool dry_run) {
  auto files = source.client.list_files(source.type, source.repo_id, source.commit);
  require_distinct_paths(files, what_of(source));
  if (!dry_run) {
    write_tree(source.repo, source.commit, files);
  }
  return files;
}

// A listing in the cache may be another's, or a proxy's: sizes and hashes that no file has.
bool may_be_the_listing(const Error& error) {
  constexpr std::array<std::string_view, 5> kCodes = {"hub.download.digest", "hub.download.short",
                                                      "hub.http.too-large", "hub.client.file",
                                                      "hub.client.not-the-hub"};
  return std::find(kCodes.begin(), kCodes.end(), error.code()) != kCodes.end();
}

void bring(const FileSource& source, std::vector<RepoFile> files, const DownloadOptions& options,
           DownloadedSnapshot& snapshot) {
  snapshot.files = chosen_files(source, std::move(files), options.allow_patterns);
  snapshot.size_bytes = 0;
  for (const RepoFile& file : snapshot.files) {
    snapshot.size_bytes += file.size_bytes;
  }
  snapshot.bytes_fetched = missing_bytes(source, snapshot.files);
  if (!options.dry_run) {
    download_files(source, snapshot.files, options.progress, options.connections);
  }
}

}  // namespace

void download_files(const FileSource& source, const std::vector<RepoFile>& files,
                    const Progress& progress, int connections) {
  require_room_for_names(source, files);
  if (offline()) {
    require_complete(source, files);
  } else {
    sweep_leftovers(source.repo);
  }
  Downloader(source, files, progress, connections).run();
}

void write_ref(const fs::path& repo, std::string_view ref, const std::string& commit) {
  const fs::path file = repo / "refs" / ref;
  std::ifstream in(file);
  std::string known;
  if (std::getline(in, known) && known == commit) {
    return;
  }
  try {
    write_atomically(file, commit);
  } catch (const Error& error) {
    log()->warn("ref not kept: {}", error.what());
  }
}

bool matches_pattern(std::string_view path, std::string_view pattern) {
  const std::string full = std::string(pattern) + (pattern.ends_with('/') ? "*" : "");
  return fnmatch(full.c_str(), std::string(path).c_str(), 0) == 0;
}

DownloadedSnapshot download_snapshot(const Client& client, RepoType type, std::string_view repo_id,
                                     std::string_view revision, const DownloadOptions& options) {
  const std::string wanted(revision.empty() ? std::string_view("main") : revision);
  fs::path cache = options.cache;
  if (cache.empty()) {
    cache = type == RepoType::kModel ? cache_folder() : kernels_cache_folder();
  }
  find_snapshot(cache, type, repo_id, wanted);  // refuses names that would leave the cache
  FileSource source{client, type, std::string(repo_id), "",
                    cache / repo_folder_name(type, repo_id)};
  const KnownCommit known = commit_of(source, wanted);
  source.commit = known.commit;
  DownloadedSnapshot snapshot{{source.repo / "snapshots" / source.commit, source.commit}, {}, 0, 0};
  const auto cached = read_tree(source.repo, source.commit);
  if (!cached && offline() && fs::is_directory(snapshot.folder)) {
    return snapshot;  // nobody can say what is missing
  }
  try {
    bring(source, cached ? *cached : ask_for_listing(source, options.dry_run), options, snapshot);
  } catch (const Error& error) {
    if (!cached || !may_be_the_listing(error) || offline()) {
      throw;
    }
    log()->warn("{}; asking for the list of files anew", error.what());
    bring(source, ask_for_listing(source, options.dry_run), options, snapshot);
  }
  if (options.dry_run) {
    return snapshot;
  }
  make_folders(snapshot.folder);
  if (known.asked) {
    write_ref(source.repo, wanted, source.commit);
  }
  return snapshot;
}

}  // namespace graft::hub

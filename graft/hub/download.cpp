#include "graft/hub/download.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <openssl/evp.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/log.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr int kMaxTriesWithoutProgress = 5;
constexpr auto kLockTimeout = std::chrono::minutes(30);
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

// The hash that names a file: SHA-256 of the content, or git's SHA-1 of `blob <size>\0` and the
// content.
class ContentHash {
 public:
  explicit ContentHash(const RepoFile& file) : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), file.sha256.empty() ? EVP_sha1() : EVP_sha256(), nullptr);
    if (file.sha256.empty()) {
      const auto header = fmt::format("blob {}", file.size_bytes);
      EVP_DigestUpdate(context_.get(), header.c_str(), header.size() + 1);  // with its NUL
    }
  }
  void update(std::string_view piece) {
    EVP_DigestUpdate(context_.get(), piece.data(), piece.size());
  }
  std::string hex() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), bytes, &size);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += fmt::format("{:02x}", bytes[i]);
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

const std::string& etag(const RepoFile& file) {
  return file.sha256.empty() ? file.git_oid : file.sha256;
}

[[noreturn]] void throw_disk(const fs::path& path, uint64_t needed_bytes) {
  const int cause = errno;
  struct statvfs space {};
  statvfs(path.parent_path().c_str(), &space);
  const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  throw Error("hub.download", "disk",
              fmt::format("`{}`: expected to write {} bytes, got: {} ({} bytes free)",
                          path.string(), needed_bytes, std::strerror(cause), free_bytes));
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, uint64_t needed_bytes)
      : value_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (value_ < 0) {
      throw_disk(path, needed_bytes);
    }
  }
  ~Descriptor() { close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

void write_all(int descriptor, std::string_view piece, uint64_t position, const fs::path& path,
               uint64_t needed_bytes) {
  while (!piece.empty()) {
    const ssize_t written =
        pwrite(descriptor, piece.data(), piece.size(), static_cast<off_t>(position));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      throw_disk(path, needed_bytes);
    }
    position += static_cast<uint64_t>(written);
    piece.remove_prefix(static_cast<size_t>(written));
  }
}

bool has_right_hash(const fs::path& path, const RepoFile& file) {
  ContentHash hash(file);
  std::ifstream in(path, std::ios::binary);
  std::string buffer(1 << 20, '\0');
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    hash.update({buffer.data(), static_cast<size_t>(in.gcount())});
  }
  return hash.hex() == etag(file);
}

// One repository of the cache while files come into it.
class Downloader {
 public:
  Downloader(const Client& client, RepoType type, std::string_view repo_id, std::string commit,
             fs::path repo, const DownloadOptions& options)
      : client_(client),
        type_(type),
        repo_id_(repo_id),
        commit_(std::move(commit)),
        repo_(std::move(repo)),
        options_(options) {}

  void fetch(const RepoFile& file) const {
    const fs::path blob = repo_ / "blobs" / etag(file);
    const fs::path pointer = repo_ / "snapshots" / commit_ / file.path;
    std::error_code status;
    if (fs::file_size(pointer, status) == file.size_bytes && !status) {
      report(file, file.size_bytes);
      return;
    }
    const FileLock lock(
        repo_.parent_path() / ".locks" / repo_.filename() / (etag(file) + ".lock"), kLockTimeout,
        [&] { log()->info("waiting for another process that downloads `{}`", file.path); });
    if (fs::file_size(blob, status) != file.size_bytes || status) {
      fetch_blob(file, blob);
    }
    link(blob, pointer, file);
    report(file, file.size_bytes);
  }

 private:
  void report(const RepoFile& file, uint64_t bytes_done) const {
    if (options_.progress) {
      options_.progress(file, bytes_done);
    }
  }

  void fetch_blob(const RepoFile& file, const fs::path& blob) const {
    fs::create_directories(blob.parent_path());
    const fs::path partial = blob.string() + ".graft-incomplete";
    for (const bool second_try : {false, true}) {
      fetch_bytes(file, partial);
      if (has_right_hash(partial, file)) {
        break;
      }
      fs::remove(partial);
      if (second_try) {
        throw IntegrityError(
            "hub.download", "digest",
            fmt::format(
                "`{}`@`{}` `{}`: expected hash {}, got another twice; the bytes were removed",
                repo_id_, commit_, file.path, etag(file)));
      }
    }
    if (std::rename(partial.c_str(), blob.c_str()) != 0) {
      throw_disk(blob, file.size_bytes);
    }
  }

  // Brings the partial file to its full size; a broken transfer goes on where it stood.
  void fetch_bytes(const RepoFile& file, const fs::path& partial) const {
    const Descriptor out(partial, O_RDWR | O_CREAT, file.size_bytes);
    uint64_t done =
        std::min<uint64_t>(static_cast<uint64_t>(lseek(out.get(), 0, SEEK_END)), file.size_bytes);
    int tries_without_progress = 0;
    auto last_report = std::chrono::steady_clock::now();
    while (done < file.size_bytes) {
      const uint64_t before = done;
      try {
        client_.read_file(type_, repo_id_, commit_, file, done,
                          [&](uint64_t position, std::string_view piece) {
                            write_all(out.get(), piece, position, partial, file.size_bytes);
                            done = position + piece.size();
                            if (const auto now = std::chrono::steady_clock::now();
                                now - last_report > kProgressInterval) {
                              last_report = now;
                              report(file, done);
                            }
                            return true;
                          });
      } catch (const NetworkError& error) {
        if (error.code() == "hub.client.offline" || error.code() == "hub.http.tls" ||
            (done <= before && ++tries_without_progress >= kMaxTriesWithoutProgress)) {
          throw;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(200) * (1 << tries_without_progress));
        continue;
      }
      if (done <= before && ++tries_without_progress >= kMaxTriesWithoutProgress) {
        throw NetworkError("hub.download", "short",
                           fmt::format("`{}` `{}`: expected {} bytes, got {}", repo_id_, file.path,
                                       file.size_bytes, done));
      }
    }
    if (ftruncate(out.get(), static_cast<off_t>(file.size_bytes)) != 0 || fsync(out.get()) != 0) {
      throw_disk(partial, file.size_bytes);
    }
  }

  // snapshots/<commit>/<path> -> ../../blobs/<etag>, made under another name and renamed: never
  // half there.
  void link(const fs::path& blob, const fs::path& pointer, const RepoFile& file) const {
    fs::create_directories(pointer.parent_path());
    const fs::path made = pointer.string() + fmt::format(".{}.tmp", getpid());
    std::error_code status;
    fs::create_symlink(fs::relative(blob, pointer.parent_path()), made, status);
    if (status) {
      fs::copy_file(blob, made,
                    fs::copy_options::overwrite_existing);  // a file system without links
    }
    if (std::rename(made.c_str(), pointer.c_str()) != 0) {
      throw_disk(pointer, file.size_bytes);
    }
  }

  const Client& client_;
  RepoType type_;
  std::string repo_id_;
  std::string commit_;
  fs::path repo_;
  const DownloadOptions& options_;
};

void write_ref(const fs::path& file, const std::string& commit) {
  fs::create_directories(file.parent_path());
  const fs::path made = file.string() + fmt::format(".{}.tmp", getpid());
  std::ofstream(made) << commit;
  if (std::rename(made.c_str(), file.c_str()) != 0) {
    throw_disk(file, commit.size());
  }
}

}  // namespace

bool matches_pattern(std::string_view path, std::string_view pattern) {
  const std::string full = std::string(pattern) + (pattern.ends_with('/') ? "*" : "");
  return fnmatch(full.c_str(), std::string(path).c_str(), 0) == 0;
}

CachedSnapshot download_snapshot(const Client& client, RepoType type, std::string_view repo_id,
                                 std::string_view revision, const DownloadOptions& options) {
  const std::string wanted(revision.empty() ? std::string_view("main") : revision);
  fs::path cache = options.cache;
  if (cache.empty()) {
    cache = type == RepoType::kModel ? cache_folder() : kernels_cache_folder();
  }
  find_snapshot(cache, type, repo_id, wanted);  // refuses names that would leave the cache
  const std::string commit =
      is_commit(wanted) ? wanted : client.resolve_commit(type, repo_id, wanted);
  const fs::path repo = cache / repo_folder_name(type, repo_id);
  const Downloader downloader(client, type, repo_id, commit, repo, options);
  for (const RepoFile& file : client.list_files(type, repo_id, commit)) {
    const auto matches = [&](const std::string& pattern) {
      return matches_pattern(file.path, pattern);
    };
    if (options.allow_patterns.empty() ||
        std::any_of(options.allow_patterns.begin(), options.allow_patterns.end(), matches)) {
      downloader.fetch(file);
    }
  }
  if (!is_commit(wanted)) {
    write_ref(repo / "refs" / wanted, commit);
  }
  return CachedSnapshot{repo / "snapshots" / commit, commit};
}

}  // namespace graft::hub

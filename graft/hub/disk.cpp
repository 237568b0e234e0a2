#include "graft/hub/disk.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/hub/leftovers.h"

namespace graft::hub {

namespace fs = std::filesystem;

void throw_disk(const fs::path& path, uint64_t needed_bytes) {
  const int cause = errno;
  struct statvfs space {};
  fs::path existing = path.parent_path();
  while (statvfs(existing.c_str(), &space) != 0 && existing.has_relative_path()) {
    existing = existing.parent_path();
  }
  const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  throw Error("hub.download", "disk",
              fmt::format("`{}`: expected to write {} bytes, got: {} ({} bytes free)",
                          path.string(), needed_bytes, std::strerror(cause), free_bytes),
              "free space, or name a writable cache with HF_HUB_CACHE or KERNELS_CACHE");
}

void make_folders(const fs::path& folder) {
  std::error_code status;
  fs::create_directories(folder, status);
  if (status && !fs::is_directory(folder)) {
    errno = status.value();
    throw_disk(folder, 0);
  }
}

void sync_file(const fs::path& file) {
  const Descriptor opened(file, O_RDONLY);
  if (fsync(opened.get()) != 0) {
    throw_disk(file, 0);
  }
}

void move_into_place(const fs::path& made, const fs::path& path) {
  if (std::rename(made.c_str(), path.c_str()) != 0) {
    const int cause = errno;
    unlink(made.c_str());
    errno = cause;
    throw_disk(path, 0);
  }
  // The name itself reaches the disk with its folder; where a folder cannot be synced, nothing can.
  const int folder = open(path.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
}

void write_atomically(const fs::path& path, std::string_view content) {
  make_folders(path.parent_path());
  const fs::path made = temporary_beside(path);
  try {
    const Descriptor out(made, O_WRONLY | O_CREAT | O_EXCL, content.size());
    write_at(out.get(), content, 0, made, content.size());
    if (fsync(out.get()) != 0) {
      throw_disk(made, content.size());
    }
  } catch (const Error&) {
    unlink(made.c_str());
    throw;
  }
  move_into_place(made, path);
}

bool ignores_case(const fs::path& folder) {
  make_folders(folder);
  const fs::path probe = folder / ("case" + temporary_beside(folder / "any").filename().string());
  const int made = open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (made < 0) {
    return false;
  }
  close(made);
  const std::string other = "CASE" + probe.filename().string().substr(4);
  const bool found = access((folder / other).c_str(), F_OK) == 0;
  unlink(probe.c_str());
  return found;
}

void write_at(int descriptor, std::string_view piece, uint64_t position, const fs::path& path,
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

Descriptor::Descriptor(const fs::path& path, int flags, uint64_t needed_bytes)
    : value_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {
  if (value_ < 0) {
    throw_disk(path, needed_bytes);
  }
}

Descriptor::~Descriptor() { close(value_); }

}  // namespace graft::hub

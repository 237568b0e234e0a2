#include "graft/hub/partial_file.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "graft/hub/leftovers.h"

namespace graft::hub {

namespace fs = std::filesystem;

PartialFile::PartialFile(fs::path file, uint64_t size_bytes)
    : path_(std::move(file)),
      size_bytes_(size_bytes),
      bytes_(path_, O_RDWR | O_CREAT, size_bytes),
      blocks_(blocks_file(path_), O_RDWR | O_CREAT, size_bytes),
      state_((size_bytes + kBlockBytes - 1) / kBlockBytes, '0') {
  struct stat bytes {
  }, blocks{};
  fstat(bytes_.get(), &bytes);
  fstat(blocks_.get(), &blocks);
  std::string noted(state_.size(), '0');
  const bool goes_on =
      static_cast<uint64_t>(bytes.st_size) == size_bytes &&
      static_cast<uint64_t>(blocks.st_size) == state_.size() &&
      pread(blocks_.get(), noted.data(), noted.size(), 0) == static_cast<ssize_t>(noted.size());
  if (goes_on) {
    std::transform(noted.begin(), noted.end(), state_.begin(),
                   [](char c) { return c == '1' ? '1' : '0'; });
  }
  struct statvfs space {};
  if (fstatvfs(bytes_.get(), &space) == 0) {
    const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
    if (free_bytes < size_bytes - done_bytes()) {
      errno = ENOSPC;
      throw_disk(path_, size_bytes - done_bytes());
    }
  }
  if (!goes_on) {
    if (ftruncate(blocks_.get(), 0) != 0 || ftruncate(bytes_.get(), 0) != 0 ||
        ftruncate(bytes_.get(), static_cast<off_t>(size_bytes)) != 0) {
      throw_disk(path_, size_bytes);
    }
    write_at(blocks_.get(), state_, 0, blocks_file(path_), state_.size());
  }
}

uint64_t PartialFile::block_end(uint64_t block) const {
  return std::min((block + 1) * kBlockBytes, size_bytes_);
}

std::optional<PartialFile::Range> PartialFile::claim(uint64_t max_bytes) {
  const std::lock_guard lock(mutex_);
  const size_t first = state_.find('0');
  if (first == std::string::npos) {
    return std::nullopt;
  }
  const size_t most = first + std::max<uint64_t>(1, (max_bytes + kBlockBytes - 1) / kBlockBytes);
  size_t last = first;
  while (last < state_.size() && last < most && state_[last] == '0') {
    state_[last++] = 'c';
  }
  return Range{first * kBlockBytes, block_end(last - 1)};
}

void PartialFile::release(const Range& range) {
  const std::lock_guard lock(mutex_);
  for (uint64_t block = range.begin / kBlockBytes; block * kBlockBytes < range.end; ++block) {
    if (state_[block] == 'c') {
      state_[block] = '0';
    }
  }
}

void PartialFile::note(uint64_t block) {
  {
    const std::lock_guard lock(mutex_);
    if (state_[block] == '1') {
      return;
    }
    state_[block] = '1';
  }
  write_at(blocks_.get(), "1", block, blocks_file(path_), 1);
  // The disk begins now, beside the network: little is left for the fsync at the end.
  sync_file_range(bytes_.get(), static_cast<off64_t>(block * kBlockBytes), kBlockBytes,
                  SYNC_FILE_RANGE_WRITE);
}

uint64_t PartialFile::done_bytes() const {
  const std::lock_guard lock(mutex_);
  const auto blocks = static_cast<uint64_t>(std::count(state_.begin(), state_.end(), '1'));
  const uint64_t full = blocks * kBlockBytes;
  const bool has_last = !state_.empty() && state_.back() == '1';
  return has_last ? full - (state_.size() * kBlockBytes - size_bytes_) : full;
}

void PartialFile::remove(const fs::path& file) {
  unlink(file.c_str());
  unlink(blocks_file(file).c_str());
}

fs::path PartialFile::blocks_file(const fs::path& file) {
  fs::path blocks = file;
  return blocks.replace_extension(kBlocks);
}

PartialFile::Stream::Stream(PartialFile& file, uint64_t position)
    : file_(file),
      position_(position),
      first_block_((position + kBlockBytes - 1) / kBlockBytes),
      next_block_(first_block_) {}

void PartialFile::Stream::write(std::string_view piece) {
  write_at(file_.bytes_.get(), piece, position_, file_.path_, file_.size_bytes_);
  position_ += piece.size();
  while (next_block_ < file_.state_.size() && file_.block_end(next_block_) <= position_) {
    file_.note(next_block_++);
  }
}

}  // namespace graft::hub

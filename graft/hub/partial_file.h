// A file that comes in pieces, from several connections and across processes; whose it is says its
// name (leftovers.h).
//
//   <name>.graft-incomplete   the bytes, at their places
//   <name>.graft-blocks       one byte for each block of 256 KiB: `1` once the block lies there
//
// A block is noted after its bytes were written. After a power failure a note may be there without
// its bytes: the hash over the whole file, before it gets its name, is what counts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "graft/hub/disk.h"

namespace graft::hub {

class PartialFile {
 public:
  static constexpr uint64_t kBlockBytes = 256 << 10;

  struct Range {
    uint64_t begin = 0;
    uint64_t end = 0;  // one past the last byte
  };

  // Opens what an earlier process left, or begins anew. Throws as throw_disk; says a disk that is
  // too full before anything is transferred.
  PartialFile(std::filesystem::path file, uint64_t size_bytes);

  // The next run of blocks that are missing and nobody else fetches: at most `max_bytes`, rounded up to
  // whole blocks.
  std::optional<Range> claim(uint64_t max_bytes);

  // Gives back what of a claimed range has not come.
  void release(const Range& range);

  // One connection's stream of bytes; blocks are noted as it passes their ends.
  class Stream {
   public:
    Stream(PartialFile& file, uint64_t position);
    void write(std::string_view piece);
    // Whole blocks since the stream's beginning.
    uint64_t blocks_passed() const { return next_block_ - first_block_; }

   private:
    PartialFile& file_;
    uint64_t position_;
    uint64_t first_block_;
    uint64_t next_block_;
  };

  uint64_t done_bytes() const;
  bool is_complete() const { return done_bytes() == size_bytes_; }
  const std::filesystem::path& path() const { return path_; }

  // Removes both files of a name. Throws nothing.
  static void remove(const std::filesystem::path& file);
  static std::filesystem::path blocks_file(const std::filesystem::path& file);

 private:
  void note(uint64_t block);
  uint64_t block_end(uint64_t block) const;

  std::filesystem::path path_;
  uint64_t size_bytes_;
  Descriptor bytes_;
  Descriptor blocks_;
  mutable std::mutex mutex_;
  std::string state_;  // of each block: '0' missing, '1' there, 'c' claimed
};

}  // namespace graft::hub

// A file mapped read-only into memory. Views into it stay valid while the object lives, provided
// that nobody shortens the file meanwhile: replace a weight file by renaming, never in place.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace graft::io {

class MappedFile {
 public:
  // Maps the whole file.
  // Throws   NotFound (`io.file.open`) with the system's reason.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_bytes_}; }

  // Gives the pages that lie wholly inside `part` back to the system: they count no longer as
  // resident, and a later access reads them from the file again.
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, size_t size_bytes);

  std::filesystem::path path_;
  const std::byte* data_;
  size_t size_bytes_;
};

}  // namespace graft::io

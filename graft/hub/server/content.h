// Files as the local Hub serves them: opened without leaving the served folder, named by their
// hashes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub::server {

// What tells one state of a file from another without reading it.
struct FileState {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;

  auto operator<=>(const FileState&) const = default;
};

struct ContentIds {
  std::string git_id;  // SHA-1 of `blob <size>\0` and the content
  std::string sha256;
};

// State of a regular file; nothing for anything else, a symbolic link included.
std::optional<FileState> state_of(const std::filesystem::path& path);

// An open regular file; closes itself. Reading is positional, so threads may share it.
class OpenFile {
 public:
  // Opens a regular file whose real place, with every symbolic link resolved, lies below `root`
  // (an absolute path without links). Nothing for anything else, a link out of `root` included:
  // the check is made on the open file, so a link that changes meanwhile cannot get around it.
  static std::shared_ptr<OpenFile> open_below(const std::filesystem::path& root,
                                              const std::filesystem::path& path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  const FileState& state() const { return state_; }

  // Reads up to `count` bytes at `offset`; fewer only at the end of the file or on a read error.
  size_t read(uint64_t offset, char* out, size_t count) const;

  // Reads the whole file once. Nothing when it became shorter or longer meanwhile.
  std::optional<ContentIds> hash() const;

 private:
  explicit OpenFile(int descriptor) : descriptor_(descriptor) {}

  int descriptor_;
  FileState state_;
};

// Lower-case hexadecimal SHA-1 and SHA-256 of a text.
std::string sha1_hex(std::string_view text);
std::string sha256_hex(std::string_view text);

}  // namespace graft::hub::server

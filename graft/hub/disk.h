// Writing below a cache so that no reader and no crash ever sees half of something.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace graft::hub {

// Throws Error `hub.download.disk` with the path, the cause that is in errno, the bytes that were
// needed and the bytes that are free.
[[noreturn]] void throw_disk(const std::filesystem::path& path, uint64_t needed_bytes);

// Creates a folder and its parents. Throws as throw_disk.
void make_folders(const std::filesystem::path& folder);

// Returns once a file's content is on disk. Throws as throw_disk.
void sync_file(const std::filesystem::path& file);

// Gives `made` the name `path`: on disk when this returns, in one step, over what was there.
// `made` is removed when that fails.
void move_into_place(const std::filesystem::path& made, const std::filesystem::path& path);

// The whole content under its final name, or nothing. Parents are created.
void write_atomically(const std::filesystem::path& path, std::string_view content);

// True where `a` and `A` are one file, as on the usual file systems of Windows and macOS. Tries it in
// `folder`; false where nothing can be written.
bool ignores_case(const std::filesystem::path& folder);

// Writes all of `piece` at `position` of an open file; `path` is for the message.
void write_at(int descriptor, std::string_view piece, uint64_t position,
              const std::filesystem::path& path, uint64_t needed_bytes);

// A file descriptor that closes itself. Throws as throw_disk when the file cannot be opened.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, uint64_t needed_bytes = 0);
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

}  // namespace graft::hub

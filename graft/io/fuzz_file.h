// A fuzzer's input as a file in memory, since the readers map files, or as a file in a folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace graft::io {

class FuzzFile {
 public:
  FuzzFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("input", 0)) {
    if (::write(descriptor_, data, size) != static_cast<ssize_t>(size)) {
      __builtin_trap();  // the harness itself is broken
    }
  }
  FuzzFile(const FuzzFile&) = delete;
  FuzzFile& operator=(const FuzzFile&) = delete;
  ~FuzzFile() { ::close(descriptor_); }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

// A folder that goes away with the process; TMPDIR in memory makes it fast.
class FuzzFolder {
 public:
  FuzzFolder() : path_(std::filesystem::temp_directory_path() / "graft-fuzz-XXXXXX") {
    std::string name = path_.string();
    if (::mkdtemp(name.data()) == nullptr) {
      __builtin_trap();
    }
    path_ = name;
  }
  FuzzFolder(const FuzzFolder&) = delete;
  FuzzFolder& operator=(const FuzzFolder&) = delete;
  ~FuzzFolder() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }

  // Writes an input under a name; parents are made.
  void write(const std::filesystem::path& name, const uint8_t* data, size_t size) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary)
        << std::string_view(reinterpret_cast<const char*>(data), size);
  }

 private:
  std::filesystem::path path_;
};

}  // namespace graft::io

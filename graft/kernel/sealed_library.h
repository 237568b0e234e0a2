// A copy of a library in memory that nobody can change any more: what is hashed and looked at is
// what is loaded, whatever happens to the file meanwhile.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace graft::kernel {

class SealedLibrary {
 public:
  // Copies a file. Costs its size in memory while the object lives.
  // Throws   NotFound `kernel.loader.library`; LoadError `kernel.loader.seal` when the system has no
  // sealed files or no memory.
  explicit SealedLibrary(const std::filesystem::path& file);
  // Takes over the descriptor of a sealed copy that another process handed down.
  // Throws   LoadError `kernel.loader.seal` when it is none.
  SealedLibrary(int descriptor, std::filesystem::path file);
  // The loader knows a library by the name it was opened with, and the name holds the descriptor's
  // number: an object whose library was opened must live as long as the library.
  ~SealedLibrary();
  SealedLibrary(const SealedLibrary&) = delete;
  SealedLibrary& operator=(const SealedLibrary&) = delete;

  int descriptor() const { return descriptor_; }
  // For dlopen() and for reading.
  std::filesystem::path path() const;
  // Where the copy was taken from.
  const std::filesystem::path& file() const { return file_; }

 private:
  std::filesystem::path file_;
  int descriptor_;
};

// The sealed copies that make up a package: one library, or what a compiled layer consists of
// (compiled_layer.h).
using SealedLibraries = std::vector<std::shared_ptr<const SealedLibrary>>;

}  // namespace graft::kernel

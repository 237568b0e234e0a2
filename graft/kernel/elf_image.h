// A library's bytes as the dynamic loader goes through them, with every offset checked. What the
// readers of headers and of symbols share. Internal to the room.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <elf.h>

#include "graft/io/mapped_file.h"

namespace graft::kernel {

class ElfImage {
 public:
  // shown  the name that errors show
  // Throws   LoadError `kernel.elf.format`, `.executable-stack`, `.writable-code`.
  ElfImage(const std::filesystem::path& file, std::string shown);

  // Throws   LoadError `kernel.elf.<reason>`.
  [[noreturn]] void fail(std::string_view reason, const std::string& text) const;

  template <typename T>
  T at(uint64_t offset) const {
    check_inside(offset, sizeof(T));
    T value;
    std::memcpy(&value, file_->bytes().data() + offset, sizeof(T));
    return value;
  }
  // The text at an offset, up to its NUL, 4096 bytes or the end of the file.
  std::string_view text_at(uint64_t offset) const;
  // Where the loader would put a byte of the file: offset of an address.
  uint64_t to_offset(uint64_t address) const;

  const Elf64_Ehdr& header() const { return header_; }
  const std::vector<Elf64_Dyn>& dynamic() const { return dynamic_; }
  // Value of a dynamic entry; of several the last, as the loader takes it.
  std::optional<uint64_t> value(int64_t tag) const;
  // Offset of what a dynamic entry points to; 0: there is no such entry.
  uint64_t offset_of(int64_t tag) const;
  // A text of the dynamic table of texts.
  std::string_view dynamic_text(uint64_t offset) const;
  std::optional<Elf64_Shdr> section(uint32_t type) const;

 private:
  void read_header();
  void read_segments();
  void read_dynamic(const Elf64_Phdr& segment);
  void check_load(const Elf64_Phdr& load) const;
  void check_inside(uint64_t offset, uint64_t size_bytes) const;

  std::string shown_;
  std::shared_ptr<const io::MappedFile> file_;
  Elf64_Ehdr header_{};
  std::vector<Elf64_Phdr> loads_;
  std::vector<Elf64_Dyn> dynamic_;
  uint64_t texts_ = 0;
};

}  // namespace graft::kernel

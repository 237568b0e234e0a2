#include "graft/kernel/elf_image.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::kernel {

namespace {

constexpr size_t kMaxDynamicEntries = 4096;
constexpr uint64_t kPageBytes = 4096;

}  // namespace

ElfImage::ElfImage(const std::filesystem::path& file, std::string shown)
    : shown_(std::move(shown)), file_(io::MappedFile::open(file)) {
  read_header();
  read_segments();
}

void ElfImage::fail(std::string_view reason, const std::string& text) const {
  throw LoadError("kernel.elf", reason, fmt::format("`{}`: {}", shown_, text));
}

void ElfImage::check_inside(uint64_t offset, uint64_t size_bytes) const {
  const uint64_t size = file_->bytes().size();
  if (offset > size || size - offset < size_bytes) {
    fail("format", fmt::format("expected {} bytes at offset {}, got the end of the file",
                               size_bytes, offset));
  }
}

std::string_view ElfImage::text_at(uint64_t offset) const {
  const auto bytes = file_->bytes();
  if (offset >= bytes.size()) {
    fail("format", "expected texts inside the file");
  }
  const char* begin = reinterpret_cast<const char*>(bytes.data()) + offset;
  return {begin, strnlen(begin, std::min<size_t>(bytes.size() - offset, 4096))};
}

void ElfImage::read_header() {
  header_ = at<Elf64_Ehdr>(0);
  const bool right = std::memcmp(header_.e_ident, ELFMAG, SELFMAG) == 0 &&
                     header_.e_ident[EI_CLASS] == ELFCLASS64 &&
                     header_.e_ident[EI_DATA] == ELFDATA2LSB && header_.e_type == ET_DYN &&
                     header_.e_machine == EM_X86_64 && header_.e_phentsize == sizeof(Elf64_Phdr);
  if (!right) {
    fail("format", "expected a 64-bit x86-64 shared library, got another file");
  }
}

void ElfImage::read_segments() {
  std::optional<Elf64_Phdr> dynamic;
  for (int i = 0; i < header_.e_phnum; ++i) {
    const auto segment =
        at<Elf64_Phdr>(header_.e_phoff + static_cast<uint64_t>(i) * sizeof(Elf64_Phdr));
    const bool executable = (segment.p_flags & PF_X) != 0;
    if (segment.p_type == PT_GNU_STACK && executable) {
      fail("executable-stack", "expected a stack without execution, got one that asks for it");
    }
    if (segment.p_type == PT_LOAD) {
      if (executable && (segment.p_flags & PF_W) != 0) {
        fail("writable-code", fmt::format("expected code that cannot be written, got a segment "
                                          "at {:#x} that can be written and executed",
                                          segment.p_vaddr));
      }
      check_load(segment);
      loads_.push_back(segment);
    } else if (segment.p_type == PT_DYNAMIC) {
      dynamic = segment;
    }
  }
  if (!dynamic) {
    fail("format", "expected a dynamic section, got none");
  }
  read_dynamic(*dynamic);
}

// The loader maps whole pages, a later segment over an earlier one. Only where segments share no
// page is what is read here what will be there; and a page beyond the file ends the process.
void ElfImage::check_load(const Elf64_Phdr& load) const {
  const uint64_t size = file_->bytes().size();
  const bool inside = load.p_offset <= size && load.p_filesz <= size - load.p_offset &&
                      load.p_filesz <= load.p_memsz &&
                      load.p_memsz <= UINT64_MAX / 2 - std::min(load.p_vaddr, UINT64_MAX / 2) &&
                      load.p_vaddr % kPageBytes == load.p_offset % kPageBytes;
  const bool apart = loads_.empty() || load.p_vaddr / kPageBytes * kPageBytes >=
                                           loads_.back().p_vaddr + loads_.back().p_memsz;
  if (!inside || !apart) {
    fail("format", fmt::format("expected segments inside the file, in order and apart, got one "
                               "at {:#x} of {} bytes from offset {}",
                               load.p_vaddr, load.p_memsz, load.p_offset));
  }
}

uint64_t ElfImage::to_offset(uint64_t address) const {
  for (const auto& load : loads_) {
    if (address >= load.p_vaddr && address - load.p_vaddr < load.p_filesz) {
      return address - load.p_vaddr + load.p_offset;
    }
  }
  fail("format", fmt::format("expected address {:#x} inside a segment", address));
}

// The loader goes by the segment's address as well, not by its offset.
void ElfImage::read_dynamic(const Elf64_Phdr& segment) {
  const uint64_t begin = to_offset(segment.p_vaddr);
  for (size_t i = 0; i < kMaxDynamicEntries; ++i) {
    const auto entry = at<Elf64_Dyn>(begin + i * sizeof(Elf64_Dyn));
    if (entry.d_tag == DT_NULL) {
      texts_ = offset_of(DT_STRTAB);
      return;
    }
    dynamic_.push_back(entry);
  }
  fail("format", fmt::format("expected at most {} dynamic entries, got more", kMaxDynamicEntries));
}

std::optional<uint64_t> ElfImage::value(int64_t tag) const {
  const auto found = std::find_if(dynamic_.rbegin(), dynamic_.rend(),
                                  [&](const Elf64_Dyn& entry) { return entry.d_tag == tag; });
  return found == dynamic_.rend() ? std::nullopt : std::optional<uint64_t>(found->d_un.d_val);
}

uint64_t ElfImage::offset_of(int64_t tag) const {
  const auto address = value(tag);
  return address ? to_offset(*address) : 0;
}

std::string_view ElfImage::dynamic_text(uint64_t offset) const {
  if (texts_ == 0 || offset > UINT64_MAX - texts_) {
    fail("format", "expected a table of texts, got none");
  }
  return text_at(texts_ + offset);
}

std::optional<Elf64_Shdr> ElfImage::section(uint32_t type) const {
  for (int i = 0; i < header_.e_shnum; ++i) {
    const auto found =
        at<Elf64_Shdr>(header_.e_shoff + static_cast<uint64_t>(i) * sizeof(Elf64_Shdr));
    if (found.sh_type == type) {
      return found;
    }
  }
  return std::nullopt;
}

}  // namespace graft::kernel

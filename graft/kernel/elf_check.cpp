#include "graft/kernel/elf_check.h"

#include <cstring>
#include <optional>
#include <string_view>

#include <elf.h>
#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/mapped_file.h"

namespace graft::kernel {

namespace {

// The one symbol of CPython that the loader offers (loader.cpp).
constexpr std::string_view kOfferedPythonSymbol = "PyModule_Create2";
constexpr size_t kMaxDynamicEntries = 4096;
constexpr uint64_t kMaxSymbols = 1 << 22;

class ElfReader {
 public:
  explicit ElfReader(const std::filesystem::path& path)
      : path_(path.string()), file_(io::MappedFile::open(path)) {}

  ElfFacts read() {
    read_header();
    read_segments();
    read_dynamic();
    read_undefined_symbols();
    return facts_;
  }

 private:
  [[noreturn]] void fail(std::string_view reason, const std::string& text) const {
    throw LoadError("kernel.elf", reason, fmt::format("`{}`: {}", path_, text));
  }

  template <typename T>
  T at(uint64_t offset) const {
    const auto bytes = file_->bytes();
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
      fail("format", fmt::format("expected {} bytes at offset {}, got the end of the file",
                                 sizeof(T), offset));
    }
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
  }

  std::string_view text_at(uint64_t offset) const {
    const auto bytes = file_->bytes();
    if (offset >= bytes.size()) {
      fail("format", "expected texts inside the file");
    }
    const char* begin = reinterpret_cast<const char*>(bytes.data()) + offset;
    return {begin, strnlen(begin, std::min<size_t>(bytes.size() - offset, 4096))};
  }

  void read_header() {
    header_ = at<Elf64_Ehdr>(0);
    const bool right = std::memcmp(header_.e_ident, ELFMAG, SELFMAG) == 0 &&
                       header_.e_ident[EI_CLASS] == ELFCLASS64 &&
                       header_.e_ident[EI_DATA] == ELFDATA2LSB && header_.e_type == ET_DYN &&
                       header_.e_machine == EM_X86_64;
    if (!right) {
      fail("format", "expected a 64-bit x86-64 shared library, got another file");
    }
  }

  void read_segments() {
    for (int i = 0; i < header_.e_phnum; ++i) {
      const auto segment =
          at<Elf64_Phdr>(header_.e_phoff + static_cast<uint64_t>(i) * sizeof(Elf64_Phdr));
      if (segment.p_type == PT_GNU_STACK && (segment.p_flags & PF_X) != 0) {
        fail("executable-stack", "expected a stack without execution, got one that asks for it");
      }
      if (segment.p_type == PT_LOAD) {
        loads_.push_back(segment);
      } else if (segment.p_type == PT_DYNAMIC) {
        dynamic_ = segment;
      }
    }
    if (!dynamic_) {
      fail("format", "expected a dynamic section, got none");
    }
  }

  uint64_t to_offset(uint64_t address) const {
    for (const auto& load : loads_) {
      if (address >= load.p_vaddr && address - load.p_vaddr < load.p_filesz) {
        return address - load.p_vaddr + load.p_offset;
      }
    }
    fail("format", fmt::format("expected address {:#x} inside a segment", address));
  }

  void read_dynamic() {
    std::vector<uint64_t> needed;
    const size_t count =
        std::min<size_t>(dynamic_->p_filesz / sizeof(Elf64_Dyn), kMaxDynamicEntries);
    for (size_t i = 0; i < count; ++i) {
      const auto entry = at<Elf64_Dyn>(dynamic_->p_offset + i * sizeof(Elf64_Dyn));
      switch (entry.d_tag) {
        case DT_NEEDED:
          needed.push_back(entry.d_un.d_val);
          break;
        case DT_STRTAB:
          strings_ = to_offset(entry.d_un.d_ptr);
          break;
        case DT_SYMTAB:
          symbols_ = to_offset(entry.d_un.d_ptr);
          break;
        case DT_HASH:
          hash_ = to_offset(entry.d_un.d_ptr);
          break;
        case DT_RPATH:
        case DT_RUNPATH:
          facts_.has_runpath = true;
          break;
        case DT_BIND_NOW:
          facts_.binds_now = true;
          break;
        case DT_FLAGS:
          facts_.binds_now |= (entry.d_un.d_val & DF_BIND_NOW) != 0;
          break;
        case DT_FLAGS_1:
          facts_.binds_now |= (entry.d_un.d_val & DF_1_NOW) != 0;
          break;
        default:
          break;
      }
    }
    for (const uint64_t offset : needed) {
      const std::string name(text_at(strings_ + offset));
      if (name.empty() || name.find('/') != std::string::npos) {
        fail("needed", fmt::format("expected names of needed libraries, got the path `{}`", name));
      }
      facts_.needed.push_back(name);
    }
  }

  // Number of dynamic symbols: the section header says it; where sections are stripped, DT_HASH.
  uint64_t num_symbols() const {
    for (int i = 0; i < header_.e_shnum; ++i) {
      const auto section =
          at<Elf64_Shdr>(header_.e_shoff + static_cast<uint64_t>(i) * sizeof(Elf64_Shdr));
      if (section.sh_type == SHT_DYNSYM) {
        return section.sh_size / sizeof(Elf64_Sym);
      }
    }
    return hash_ == 0 ? 0 : at<uint32_t>(hash_ + sizeof(uint32_t));
  }

  void read_undefined_symbols() {
    const uint64_t count = symbols_ == 0 ? 0 : num_symbols();
    if (count > kMaxSymbols) {
      fail("format", fmt::format("expected at most {} symbols, got {}", kMaxSymbols, count));
    }
    for (uint64_t i = 0; i < count; ++i) {
      const auto symbol = at<Elf64_Sym>(symbols_ + i * sizeof(Elf64_Sym));
      if (symbol.st_shndx != SHN_UNDEF || symbol.st_name == 0) {
        continue;
      }
      const auto name = text_at(strings_ + symbol.st_name);
      if (name.starts_with("Py") || name.starts_with("_Py")) {
        facts_.undefined_python.emplace_back(name);
        if (name != kOfferedPythonSymbol) {
          fail("python", fmt::format("expected no symbol of CPython but {}, got `{}`",
                                     kOfferedPythonSymbol, name));
        }
      }
    }
  }

  std::string path_;
  std::shared_ptr<const io::MappedFile> file_;
  Elf64_Ehdr header_{};
  std::vector<Elf64_Phdr> loads_;
  std::optional<Elf64_Phdr> dynamic_;
  uint64_t strings_ = 0;
  uint64_t symbols_ = 0;
  uint64_t hash_ = 0;
  ElfFacts facts_;
};

}  // namespace

ElfFacts check_elf(const std::filesystem::path& library) { return ElfReader(library).read(); }

}  // namespace graft::kernel

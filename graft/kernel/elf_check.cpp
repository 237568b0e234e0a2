#include "graft/kernel/elf_check.h"

#include <algorithm>
#include <array>
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
constexpr uint64_t kPageBytes = 4096;

// A build under a sanitizer makes packages that need its runtime, which is in the process already.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::array<std::string_view, 3> kSanitizers = {"libasan.so.", "libubsan.so.",
                                                         "libtsan.so."};
#else
constexpr std::array<std::string_view, 0> kSanitizers = {};
#endif

// Libraries that a kernel may ask for, by the beginning of their names: the system's C and C++,
// PyTorch and CUDA. Whatever else it needs would be found by luck, and run.
constexpr std::array<std::string_view, 29> kAllowedNeeded = {
    "libc.so.",           "libm.so.",         "libdl.so.",
    "librt.so.",          "libpthread.so.",   "ld-linux-x86-64.so.",
    "libstdc++.so.",      "libgcc_s.so.",     "libgomp.so.",
    "libgomp-",           "libmvec.so.",      "libtorch.so",
    "libtorch_cpu.so",    "libtorch_cuda.so", "libtorch_cuda_linalg.so",
    "libtorch_python.so", "libc10.so",        "libc10_cuda.so",
    "libcuda.so.1",       "libcudart.so.",    "libcublas.so.",
    "libcublasLt.so.",    "libcudnn.so.",     "libcufft.so.",
    "libcurand.so.",      "libcusparse.so.",  "libcusolver.so.",
    "libnvrtc.so.",       "libnccl.so."};

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
                       header_.e_machine == EM_X86_64 && header_.e_phentsize == sizeof(Elf64_Phdr);
    if (!right) {
      fail("format", "expected a 64-bit x86-64 shared library, got another file");
    }
  }

  void read_segments() {
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
        dynamic_ = segment;
      }
    }
    if (!dynamic_) {
      fail("format", "expected a dynamic section, got none");
    }
  }

  // The loader maps whole pages, a later segment over an earlier one. Only where segments share no
  // page is what is read here what will be there; and a page beyond the file ends the process.
  void check_load(const Elf64_Phdr& load) const {
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

  uint64_t to_offset(uint64_t address) const {
    for (const auto& load : loads_) {
      if (address >= load.p_vaddr && address - load.p_vaddr < load.p_filesz) {
        return address - load.p_vaddr + load.p_offset;
      }
    }
    fail("format", fmt::format("expected address {:#x} inside a segment", address));
  }

  // Names can be looked up only once the table of texts is known, wherever it stands.
  void read_dynamic() {
    const uint64_t begin = to_offset(dynamic_->p_vaddr);  // the loader goes by the address as well
    std::vector<uint64_t> needed, paths;
    bool ended = false;
    for (size_t i = 0; i < kMaxDynamicEntries && !ended; ++i) {
      const auto entry = at<Elf64_Dyn>(begin + i * sizeof(Elf64_Dyn));
      ended = entry.d_tag == DT_NULL;
      if (entry.d_tag == DT_NEEDED) {
        needed.push_back(entry.d_un.d_val);
      } else if (entry.d_tag == DT_RPATH || entry.d_tag == DT_RUNPATH) {
        paths.push_back(entry.d_un.d_val);
      } else {
        read_entry(entry);
      }
    }
    if (!ended) {
      fail("format",
           fmt::format("expected at most {} dynamic entries, got more", kMaxDynamicEntries));
    }
    for (const uint64_t offset : needed) {
      check_needed(std::string(text_at(strings_ + offset)));
    }
    for (const uint64_t offset : paths) {
      check_runpath(text_at(strings_ + offset));
    }
  }

  void read_entry(const Elf64_Dyn& entry) {
    const uint64_t value = entry.d_un.d_val;
    switch (entry.d_tag) {
      case DT_STRTAB:
        strings_ = to_offset(value);
        break;
      case DT_SYMTAB:
        symbols_ = to_offset(value);
        break;
      case DT_HASH:
        hash_ = to_offset(value);
        break;
      case DT_INIT:
        ++facts_.num_constructors;
        break;
      case DT_INIT_ARRAYSZ:
        facts_.num_constructors += value / sizeof(Elf64_Addr);
        break;
      case DT_TEXTREL:
        refuse_text_relocations();
        break;
      case DT_BIND_NOW:
        facts_.binds_now = true;
        break;
      case DT_FLAGS:
        if ((value & DF_TEXTREL) != 0) {
          refuse_text_relocations();
        }
        facts_.binds_now |= (value & DF_BIND_NOW) != 0;
        break;
      case DT_FLAGS_1:
        facts_.binds_now |= (value & DF_1_NOW) != 0;
        break;
      default:
        break;
    }
  }

  [[noreturn]] void refuse_text_relocations() const {
    fail("text-relocations", "expected code that is never written to, got relocations in it");
  }

  void check_needed(const std::string& name) {
    if (name.empty() || name.find('/') != std::string::npos) {
      fail("needed", fmt::format("expected names of needed libraries, got the path `{}`", name));
    }
    const auto begins_name = [&](std::string_view allowed) { return name.starts_with(allowed); };
    if (std::none_of(kAllowedNeeded.begin(), kAllowedNeeded.end(), begins_name) &&
        std::none_of(kSanitizers.begin(), kSanitizers.end(), begins_name)) {
      fail("needed",
           fmt::format("expected to need the system, PyTorch and CUDA alone, got `{}`", name));
    }
    facts_.needed.push_back(name);
  }

  // An empty or relative entry means the working directory: whoever can write there would choose
  // the code that is loaded.
  void check_runpath(std::string_view paths) {
    for (size_t start = 0; start <= paths.size();) {
      const size_t end = std::min(paths.find(':', start), paths.size());
      const std::string_view entry = paths.substr(start, end - start);
      if (!entry.starts_with("/") && !entry.starts_with("$ORIGIN") &&
          !entry.starts_with("${ORIGIN}")) {
        fail("runpath", fmt::format("expected absolute paths or $ORIGIN, got `{}`", entry));
      }
      facts_.runpath.emplace_back(entry);
      start = end + 1;
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

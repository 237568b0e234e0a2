#include "graft/kernel/elf_symbols.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include <fmt/format.h>

namespace graft::kernel {

namespace {

// The one symbol of CPython that the loader offers (loader.cpp).
constexpr std::string_view kOfferedPythonSymbol = "PyModule_Create2";
constexpr std::string_view kEntryPrefix = "PyInit_";
constexpr uint64_t kMaxSymbols = 1 << 22;
constexpr uint64_t kMaxRelocations = 1 << 24;
constexpr uint64_t kMaxVersions = 4096;
constexpr uint64_t kMaxConstructors = 1 << 16;
constexpr uint16_t kVersionMask = 0x7fff;  // the top bit of an entry of DT_VERSYM means hidden

class SymbolReader {
 public:
  SymbolReader(const ElfImage& image, ElfFacts& facts)
      : image_(image),
        facts_(facts),
        symbols_(image.offset_of(DT_SYMTAB)),
        version_table_(image.offset_of(DT_VERSYM)),
        init_array_(image.value(DT_INIT_ARRAY)),
        init_array_bytes_(image.value(DT_INIT_ARRAYSZ).value_or(0)) {}

  void read() {
    read_relocations();
    read_versions();
    read_dynamic_symbols();
    read_constructors();
  }

 private:
  void limit(std::string_view what, uint64_t count, uint64_t most) const {
    if (count > most) {
      image_.fail("format", fmt::format("expected at most {} {}, got {}", most, what, count));
    }
  }

  // Symbols are counted by whoever refers to them: the loader knows no number either, and section
  // headers may be stripped or lie.
  void count_to(uint64_t count) {
    limit("symbols", count, kMaxSymbols);
    num_symbols_ = std::max(num_symbols_, count);
  }

  void read_relocations() {
    for (const auto& [table, size] :
         {std::pair{DT_RELA, DT_RELASZ}, std::pair{DT_JMPREL, DT_PLTRELSZ}}) {
      const uint64_t begin = image_.offset_of(table);
      const uint64_t count = begin == 0 ? 0 : image_.value(size).value_or(0) / sizeof(Elf64_Rela);
      limit("relocations", count, kMaxRelocations);
      for (uint64_t i = 0; i < count; ++i) {
        read_relocation(image_.at<Elf64_Rela>(begin + i * sizeof(Elf64_Rela)));
      }
    }
    if (const uint64_t hash = image_.offset_of(DT_HASH); hash != 0) {
      count_to(image_.at<uint32_t>(hash + sizeof(uint32_t)));
    }
    if (const uint64_t hash = image_.offset_of(DT_GNU_HASH); hash != 0) {
      count_to(num_hashed(hash));
    }
    if (const auto section = image_.section(SHT_DYNSYM)) {
      count_to(section->sh_size / sizeof(Elf64_Sym));
    }
  }

  void read_relocation(const Elf64_Rela& relocation) {
    const uint64_t symbol = ELF64_R_SYM(relocation.r_info);
    count_to(symbol == 0 ? 0 : symbol + 1);
    if (init_array_ && relocation.r_offset >= *init_array_ &&
        relocation.r_offset - *init_array_ < init_array_bytes_) {
      slots_[relocation.r_offset] = relocation;
    }
  }

  // The last symbol of a GNU hash table ends the longest chain.
  uint64_t num_hashed(uint64_t hash) const {
    const auto header = image_.at<std::array<uint32_t, 4>>(hash);  // buckets, first, bloom, shift
    const uint64_t buckets = hash + sizeof(header) + uint64_t{8} * header[2];
    const uint64_t chains = buckets + uint64_t{4} * header[0];
    limit("buckets", header[0], kMaxSymbols);
    uint64_t last = 0;
    for (uint64_t i = 0; i < header[0]; ++i) {
      last = std::max<uint64_t>(last, image_.at<uint32_t>(buckets + 4 * i));
    }
    if (last < header[1]) {
      return header[1];
    }
    while ((image_.at<uint32_t>(chains + 4 * (last - header[1])) & 1) == 0) {
      ++last;
    }
    return last + 1;
  }

  void read_versions() {
    uint64_t need = image_.offset_of(DT_VERNEED);
    const uint64_t count = image_.value(DT_VERNEEDNUM).value_or(0);
    limit("libraries with versions", count, kMaxVersions);
    for (uint64_t i = 0; need != 0 && i < count; ++i) {
      const auto library = image_.at<Elf64_Verneed>(need);
      uint64_t entry = need + library.vn_aux;
      for (uint64_t j = 0; j < library.vn_cnt; ++j) {
        const auto version = image_.at<Elf64_Vernaux>(entry);
        const std::string name(image_.dynamic_text(version.vna_name));
        limit("versions", facts_.symbol_versions.size() + 1, kMaxVersions);
        facts_.symbol_versions.push_back(name);
        versions_[version.vna_other & kVersionMask] = name;
        entry += version.vna_next;
      }
      need += library.vn_next;
    }
  }

  std::string version_of(uint64_t index) const {
    if (version_table_ == 0) {
      return "";
    }
    const auto number = image_.at<uint16_t>(version_table_ + index * sizeof(uint16_t));
    const auto found = versions_.find(number & kVersionMask);
    return found == versions_.end() ? "" : found->second;
  }

  void read_dynamic_symbols() {
    for (uint64_t i = 0; symbols_ != 0 && i < num_symbols_; ++i) {
      const auto symbol = image_.at<Elf64_Sym>(symbols_ + i * sizeof(Elf64_Sym));
      if (symbol.st_name == 0) {
        continue;
      }
      const std::string name(image_.dynamic_text(symbol.st_name));
      if (symbol.st_shndx == SHN_UNDEF) {
        add_undefined(name, symbol, i);
      } else {
        add_defined(name, symbol);
      }
    }
  }

  void add_undefined(const std::string& name, const Elf64_Sym& symbol, uint64_t index) {
    if (name.starts_with("Py") || name.starts_with("_Py")) {
      facts_.undefined_python.push_back(name);
      if (name != kOfferedPythonSymbol) {
        image_.fail("python", fmt::format("expected no symbol of CPython but {}, got `{}`",
                                          kOfferedPythonSymbol, name));
      }
    } else if (ELF64_ST_BIND(symbol.st_info) == STB_WEAK) {
      facts_.weak.push_back(name);
    } else {
      facts_.undefined.push_back({name, version_of(index)});
    }
  }

  void add_defined(const std::string& name, const Elf64_Sym& symbol) {
    if (ELF64_ST_BIND(symbol.st_info) == STB_GNU_UNIQUE) {
      facts_.unique.push_back(name);
    }
    if (name.starts_with(kEntryPrefix)) {
      facts_.entry_points.push_back(name.substr(kEntryPrefix.size()));
    }
    if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC) {
      names_.emplace(symbol.st_value, name);
    }
  }

  // What a debugger would call the functions; a stripped library has no such names.
  void read_local_names() {
    const auto symbols = image_.section(SHT_SYMTAB);
    if (!symbols || symbols->sh_link >= image_.header().e_shnum) {
      return;
    }
    const auto texts =
        image_.at<Elf64_Shdr>(image_.header().e_shoff + symbols->sh_link * sizeof(Elf64_Shdr));
    const uint64_t count = symbols->sh_size / sizeof(Elf64_Sym);
    limit("symbols", count, kMaxSymbols);
    for (uint64_t i = 0; i < count; ++i) {
      const auto symbol = image_.at<Elf64_Sym>(symbols->sh_offset + i * sizeof(Elf64_Sym));
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_shndx != SHN_UNDEF) {
        names_.emplace(symbol.st_value, image_.text_at(texts.sh_offset + symbol.st_name));
      }
    }
  }

  std::string function_at(uint64_t address) const {
    const auto found = names_.find(address);
    return found == names_.end() ? fmt::format("{:#x}", address) : found->second;
  }

  void read_constructors() {
    const auto init = image_.value(DT_INIT);
    const uint64_t count = init_array_bytes_ / sizeof(Elf64_Addr);
    facts_.num_constructors = (init ? 1 : 0) + count;
    if (facts_.num_constructors == 0) {
      return;
    }
    read_local_names();
    if (init) {
      facts_.constructors.push_back(function_at(*init));
    }
    if (!init_array_) {
      return;
    }
    limit("constructors", count, kMaxConstructors);
    for (uint64_t i = 0; i < count; ++i) {
      facts_.constructors.push_back(function_in_slot(*init_array_ + i * sizeof(Elf64_Addr)));
    }
  }

  // A slot of the array is filled by a relocation, or (in the packed form) lies in the file.
  std::string function_in_slot(uint64_t slot) const {
    const auto found = slots_.find(slot);
    if (found == slots_.end()) {
      return function_at(image_.at<uint64_t>(image_.to_offset(slot)));
    }
    const uint64_t index = ELF64_R_SYM(found->second.r_info);
    if (index == 0) {
      return function_at(static_cast<uint64_t>(found->second.r_addend));
    }
    const auto symbol = image_.at<Elf64_Sym>(symbols_ + index * sizeof(Elf64_Sym));
    return std::string(image_.dynamic_text(symbol.st_name));
  }

  const ElfImage& image_;
  ElfFacts& facts_;
  uint64_t symbols_;
  uint64_t version_table_;
  std::optional<uint64_t> init_array_;
  uint64_t init_array_bytes_;
  uint64_t num_symbols_ = 0;
  std::map<uint16_t, std::string> versions_;  // by their number in DT_VERSYM
  std::map<uint64_t, std::string> names_;     // functions by address
  std::map<uint64_t, Elf64_Rela> slots_;      // of the constructors' array, by address
};

// `GLIBC_2.28` -> {2, 28}; what has no numbers (`GLIBC_PRIVATE`) is newer than everything.
std::vector<int> numbers_of(std::string_view version) {
  std::vector<int> numbers;
  while (!version.empty()) {
    int number = 0;
    const auto [end, status] =
        std::from_chars(version.data(), version.data() + version.size(), number);
    if (status != std::errc()) {
      return {INT32_MAX};
    }
    numbers.push_back(number);
    version.remove_prefix(static_cast<size_t>(end - version.data()));
    if (!version.empty()) {
      version.remove_prefix(1);
    }
  }
  return numbers;
}

}  // namespace

void read_symbols(const ElfImage& image, ElfFacts& facts) { SymbolReader(image, facts).read(); }

std::vector<std::string> newer_symbol_versions(const ElfFacts& facts) {
  static const std::array<std::pair<std::string_view, std::vector<int>>, 3> kMost = {
      {{"GLIBC_", {2, 28}}, {"GLIBCXX_", {3, 4, 24}}, {"CXXABI_", {1, 3, 11}}}};
  std::vector<std::string> newer;
  for (const auto& version : facts.symbol_versions) {
    for (const auto& [prefix, most] : kMost) {
      if (version.starts_with(prefix) && numbers_of(version.substr(prefix.size())) > most) {
        newer.push_back(version);
      }
    }
  }
  std::sort(newer.begin(), newer.end());
  newer.erase(std::unique(newer.begin(), newer.end()), newer.end());
  return newer;
}

}  // namespace graft::kernel

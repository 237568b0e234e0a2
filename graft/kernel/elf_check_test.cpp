// Libraries laid out byte by byte, each wrong in one place; the loader's tests check real ones.

#include "graft/kernel/elf_check.h"

#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>

#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::kernel {
namespace {

constexpr uint64_t kDynamic = 4096;  // offset and address of the dynamic section
constexpr uint64_t kStrings = 8192;

// Header, one segment of code, one of data with the dynamic section and the texts.
struct Library {
  Elf64_Ehdr header{};
  Elf64_Phdr code{}, data{}, dynamic{}, stack{};
  std::string strings = std::string(1, '\0');
  std::vector<Elf64_Dyn> entries;
  uint64_t size_bytes = 3 * 4096;

  Library() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_DYN;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof(Elf64_Ehdr);
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 4;
    code = {PT_LOAD, PF_R | PF_X, 0, 0, 0, 4096, 4096, 4096};
    data = {PT_LOAD, PF_R | PF_W, kDynamic, kDynamic, kDynamic, 2 * 4096, 2 * 4096, 4096};
    dynamic = {PT_DYNAMIC, PF_R, kDynamic, kDynamic, kDynamic, 4096, 4096, 8};
    stack = {PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
    add(DT_STRTAB, kStrings);
  }

  void add(int64_t tag, uint64_t value) { entries.push_back({tag, {value}}); }
  void add_text(int64_t tag, const std::string& text) {
    add(tag, strings.size());
    strings += text + '\0';
  }

  std::string bytes() const {
    std::string all(3 * 4096, '\0');
    const auto put = [&](uint64_t offset, const void* from, size_t size) {
      std::memcpy(all.data() + offset, from, size);
    };
    put(0, &header, sizeof(header));
    const Elf64_Phdr segments[] = {code, data, dynamic, stack};
    put(sizeof(header), segments, sizeof(segments));
    put(kDynamic, entries.data(), entries.size() * sizeof(Elf64_Dyn));
    put(kStrings, strings.data(), strings.size());
    all.resize(size_bytes);
    return all;
  }
};

class ElfCheck : public testing::Test {
 protected:
  ~ElfCheck() override { std::filesystem::remove(path_); }

  ElfFacts check(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    return check_elf(path_);
  }

  // The code of the refusal, or an empty text.
  std::string code_of(const std::string& bytes) {
    try {
      check(bytes);
    } catch (const LoadError& error) {
      return error.code();
    }
    return "";
  }

  std::string code_after(const std::function<void(Library&)>& change) {
    Library library;
    change(library);
    return code_of(library.bytes());
  }

 private:
  std::filesystem::path path_ =
      std::filesystem::path(testing::TempDir()) / ("graft-elf-" + std::to_string(getpid()) + ".so");
};

TEST_F(ElfCheck, ReportsWhatALibraryAsksFor) {
  Library library;
  library.add_text(DT_NEEDED, "libtorch.so");
  library.add_text(DT_NEEDED, "libcudart.so.13");
  library.add_text(DT_RUNPATH, "$ORIGIN/lib:/opt/cuda/lib64");
  library.add(DT_INIT, 64);
  library.add(DT_INIT_ARRAYSZ, 24);
  library.add(DT_FLAGS, DF_BIND_NOW);
  const auto facts = check(library.bytes());
  EXPECT_THAT(facts.needed, testing::ElementsAre("libtorch.so", "libcudart.so.13"));
  EXPECT_THAT(facts.runpath, testing::ElementsAre("$ORIGIN/lib", "/opt/cuda/lib64"));
  EXPECT_EQ(facts.num_constructors, 4U);
  EXPECT_TRUE(facts.binds_now);
}

TEST_F(ElfCheck, RefusesWhatALibraryMayNotAskFor) {
  const auto text = [](int64_t tag, const char* value) {
    return [=](Library& library) { library.add_text(tag, value); };
  };
  EXPECT_EQ(code_after([](Library&) {}), "");
  EXPECT_EQ(code_after([](Library& l) { l.stack.p_flags |= PF_X; }), "kernel.elf.executable-stack");
  EXPECT_EQ(code_after([](Library& l) { l.data.p_flags |= PF_X; }), "kernel.elf.writable-code");
  EXPECT_EQ(code_after([](Library& l) { l.add(DT_TEXTREL, 0); }), "kernel.elf.text-relocations");
  EXPECT_EQ(code_after([](Library& l) { l.add(DT_FLAGS, DF_TEXTREL); }),
            "kernel.elf.text-relocations");
  EXPECT_EQ(code_after(text(DT_NEEDED, "libcurl.so.4")), "kernel.elf.needed");
  EXPECT_EQ(code_after(text(DT_NEEDED, "/tmp/libc.so.6")), "kernel.elf.needed");
  EXPECT_EQ(code_after(text(DT_NEEDED, "")), "kernel.elf.needed");
  for (const char* path : {"lib", "", "/usr/lib:", ":/usr/lib", "/usr/lib::/lib", "./x"}) {
    EXPECT_EQ(code_after(text(DT_RUNPATH, path)), "kernel.elf.runpath") << path;
    EXPECT_EQ(code_after(text(DT_RPATH, path)), "kernel.elf.runpath") << path;
  }
}

TEST_F(ElfCheck, RefusesSegmentsThatTheLoaderWouldMapOverEachOtherOrBeyondTheFile) {
  const auto refused = [&](const std::function<void(Library&)>& change) {
    return code_after(change) == "kernel.elf.format";
  };
  EXPECT_TRUE(refused([](Library& l) { l.code.p_memsz = 4097; }));  // into the data's page
  EXPECT_TRUE(refused([](Library& l) { l.code.p_filesz = 4097; }));
  EXPECT_TRUE(refused([](Library& l) { std::swap(l.code, l.data); }));
  EXPECT_TRUE(refused([](Library& l) { l.size_bytes -= 1; }));
  EXPECT_TRUE(refused([](Library& l) { l.data.p_offset = UINT64_MAX - 4095; }));
  EXPECT_TRUE(refused([](Library& l) { l.data.p_vaddr += 8; }));
  EXPECT_TRUE(refused([](Library& l) { l.data.p_vaddr = UINT64_MAX - 4095; }));
  EXPECT_TRUE(refused([](Library& l) { l.data.p_memsz = UINT64_MAX; }));
  EXPECT_TRUE(refused([](Library& l) { l.dynamic.p_vaddr = 1 << 20; }));
  EXPECT_TRUE(refused([](Library& l) { l.header.e_phentsize = 8; }));
  EXPECT_TRUE(refused([](Library& l) { l.dynamic.p_type = PT_NOTE; }));
  EXPECT_TRUE(refused([](Library& l) { l.add(DT_SYMTAB, 1 << 20); }));
}

TEST_F(ElfCheck, GoesByTheAddressOfTheDynamicSectionAsTheLoaderDoes) {
  Library library;
  library.add_text(DT_NEEDED, "libcurl.so.4");
  library.dynamic.p_offset = 2048;  // zeros: nothing is needed there
  EXPECT_EQ(code_of(library.bytes()), "kernel.elf.needed");
}

TEST_F(ElfCheck, RefusesADynamicSectionWithoutAnEnd) {
  Library library;
  library.strings = "x";                  // they stand in the way, and a NUL would be an end
  while (library.entries.size() < 512) {  // fills the two pages up to the end of the file
    library.add(DT_DEBUG, 0);
  }
  EXPECT_EQ(code_of(library.bytes() + std::string(1 << 17, '\1')), "kernel.elf.format");
}

TEST_F(ElfCheck, AnswersEveryChangedByteWithAVerdict) {
  Library library;
  library.add_text(DT_NEEDED, "libc.so.6");
  const std::string right = library.bytes();
  const std::pair<uint64_t, uint64_t> parts[] = {{0, 288}, {kDynamic, 48}, {kStrings, 12}};
  for (const auto& [begin, size] : parts) {
    for (uint64_t i = begin; i < begin + size; ++i) {
      for (const char value : {'\x00', '\x7f', '\xff'}) {
        std::string changed = right;
        changed[i] = value;
        const std::string code = code_of(changed);
        EXPECT_TRUE(code.empty() || code.starts_with("kernel.elf.")) << i << ": " << code;
      }
    }
  }
}

TEST_F(ElfCheck, AnswersEveryCutWithFormat) {
  const std::string right = Library().bytes();
  for (size_t size = 0; size < right.size(); size += 61) {
    EXPECT_EQ(code_of(right.substr(0, size)), "kernel.elf.format") << size;
  }
}

}  // namespace
}  // namespace graft::kernel

// What the gate says of libraries that a compiler made: symbols, versions, constructors, data that
// libraries would share, and a file that changes while it is loaded.

#include <atomic>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/elf_check.h"
#include "graft/kernel/import_report.h"
#include "graft/kernel/loader.h"
#include "graft/kernel/sealed_library.h"
#include "graft/kernel/symbol_check.h"
#include "graft/kernel/test_library.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class ElfLibrary : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-elf-library-" + std::to_string(getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  ElfFacts facts_of(const std::string& source, const std::string& options = "") {
    compile_library(source, root_ / "library.so", options);
    return check_elf(root_ / "library.so");
  }

  // Code and text of what loading the package throws.
  std::pair<std::string, std::string> refusal(const Resolution& package) {
    try {
      load("org/demo", package);
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {};
  }

  fs::path root_;
};

TEST_F(ElfLibrary, SaysWhichSymbolsItNeedsAndInWhichVersion) {
  const auto facts = facts_of(
      "#include <cmath>\n#include <cstdlib>\nextern \"C\" void elsewhere();\n"
      "extern \"C\" __attribute__((weak)) void perhaps();\n"
      "double f(double x) { elsewhere(); if (perhaps) perhaps(); return std::exp(x) + rand(); }");
  std::map<std::string, std::string> versions;
  for (const auto& symbol : facts.undefined) {
    versions[symbol.name] = symbol.version;
  }
  ASSERT_TRUE(versions.contains("elsewhere"));
  EXPECT_EQ(versions["elsewhere"], "");
  EXPECT_THAT(versions["exp"], testing::StartsWith("GLIBC_"));
  EXPECT_EQ(versions["rand"], "GLIBC_2.2.5");
  EXPECT_FALSE(versions.contains("perhaps"));
  EXPECT_THAT(facts.weak, Contains("perhaps"));
  EXPECT_THAT(missing_symbols(facts), ElementsAre("`elsewhere`"));
}

TEST_F(ElfLibrary, IsReadTheSameWithoutSectionHeaders) {
  const std::string source = "extern \"C\" void elsewhere();\nvoid f() { elsewhere(); }";
  for (const char* hash : {"-Wl,--hash-style=gnu", "-Wl,--hash-style=sysv"}) {
    const auto whole = facts_of(source, hash);
    std::fstream file(root_ / "library.so", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offsetof(Elf64_Ehdr, e_shnum));
    file.write("\0\0", 2);
    file.close();
    const auto stripped = check_elf(root_ / "library.so");
    EXPECT_EQ(stripped.undefined.size(), whole.undefined.size()) << hash;
    EXPECT_THAT(missing_symbols(stripped), ElementsAre("`elsewhere`"));
  }
}

TEST_F(ElfLibrary, ListsItsConstructorsByName) {
  const auto facts = facts_of(
      "extern \"C\" {\nint runs;\n"
      "__attribute__((constructor)) void first_thing() { runs = 1; }\n"
      "__attribute__((constructor)) void second_thing() { ++runs; }\n}");
  EXPECT_THAT(facts.constructors, testing::IsSupersetOf({"first_thing", "second_thing"}));
  EXPECT_EQ(facts.num_constructors, facts.constructors.size());
}

TEST_F(ElfLibrary, SaysWhichVersionsOldSystemsDoNotHave) {
  ElfFacts facts;
  facts.symbol_versions = {"GLIBC_2.2.5",    "GLIBC_2.28",     "GLIBC_2.34",
                           "GLIBCXX_3.4.24", "GLIBCXX_3.4.30", "CXXABI_1.3.11",
                           "CXXABI_1.3.13",  "GLIBC_PRIVATE",  "libcudart.so.13"};
  EXPECT_THAT(newer_symbol_versions(facts),
              ElementsAre("CXXABI_1.3.13", "GLIBCXX_3.4.30", "GLIBC_2.34", "GLIBC_PRIVATE"));
}

TEST_F(ElfLibrary, OfAnotherSystemIsRefusedByTheSymbolAndItsVersion) {
  ElfFacts facts = facts_of("#include <cstdlib>\nint f() { return rand(); }");
  EXPECT_THAT(missing_symbols(facts), IsEmpty());
  for (auto& symbol : facts.undefined) {
    symbol.version = symbol.name == "rand" ? "GLIBC_2.99" : symbol.version;
  }
  facts.needed.push_back("libcudnn.so.99");
  EXPECT_THAT(missing_symbols(facts),
              ElementsAre("library `libcudnn.so.99`", "`rand` of GLIBC_2.99"));
}

TEST_F(ElfLibrary, ReportsWhatReachesFilesProcessesAndTheNetwork) {
  const auto facts = facts_of(
      "#include <dlfcn.h>\n#include <fcntl.h>\n#include <fstream>\n#include <sys/socket.h>\n"
      "#include <sys/stat.h>\n#include <unistd.h>\n#include <cstdlib>\n"
      "int f() { std::ifstream in(\"x\"); struct stat s; stat(\"x\", &s);\n"
      "return open(\"x\", 0) + socket(1, 1, 0) + fork() + (dlopen(\"x\", 1) != nullptr) +\n"
      "(getenv(\"HF_TOKEN\") != nullptr); }");
  const auto report = sensitive_imports(facts);
  EXPECT_THAT(report.files,
              AllOf(Contains("open"), Contains("stat"), Contains(HasSubstr("basic_ifstream"))));
  EXPECT_THAT(report.processes, ElementsAre("fork", "getenv"));
  EXPECT_THAT(report.network, ElementsAre("socket"));
  EXPECT_THAT(report.code, ElementsAre("dlopen"));
  EXPECT_TRUE(sensitive_imports(facts_of("#include <cmath>\ndouble g(double x) { return "
                                         "std::exp(x); }"))
                  .empty());
}

TEST_F(ElfLibrary, ThatMissesASymbolIsRefusedByItsNameBeforeItRuns) {
  const auto package =
      make_package(root_, "_misses_cpu_0",
                   "#include <cstdlib>\nextern \"C\" void of_another_torch();\n"
                   "void f() { of_another_torch(); }\n"
                   "__attribute__((constructor)) static void run() { std::abort(); }");
  const auto [code, text] = refusal(package);
  EXPECT_EQ(code, "kernel.elf.symbols");
  EXPECT_THAT(text, HasSubstr("misses `of_another_torch`"));
}

TEST_F(ElfLibrary, WithoutTheEntryPointOfItsIdIsRefused) {
  const auto package = make_package(root_, "_entry_cpu_0", "");
  Resolution other = package;
  other.metadata.id = "_other_cpu_0";
  const auto [code, text] = refusal(other);
  EXPECT_EQ(code, "kernel.elf.entry");
  EXPECT_THAT(text, AllOf(HasSubstr("`PyInit__other_cpu_0`"), HasSubstr("PyInit__entry_cpu_0")));
}

TEST_F(ElfLibrary, ThatWouldShareItsDataWithAnotherKernelIsRefused) {
  const std::string source =
      "template <typename T> struct Cache { static inline int entries = 0; };\n"
      "int use() { return ++Cache<int>::entries; }";
  ASSERT_THAT(facts_of(source, "-fgnu-unique").unique, Contains(HasSubstr("Cache")));
  EXPECT_THAT(facts_of(source, "-fno-gnu-unique").unique, IsEmpty());
  // Both register no ops, which is the next refusal.
  EXPECT_EQ(refusal(make_package(root_, "_unique_one_cpu_0", source, "-fgnu-unique")).first,
            "kernel.loader.no-ops");
  const auto [code, text] =
      refusal(make_package(root_, "_unique_two_cpu_0", source, "-fgnu-unique"));
  EXPECT_EQ(code, "kernel.elf.unique-symbols");
  EXPECT_THAT(text, HasSubstr("Cache"));
  EXPECT_EQ(refusal(make_package(root_, "_unique_none_cpu_0", source, "-fno-gnu-unique")).first,
            "kernel.loader.no-ops");
}

TEST_F(ElfLibrary, MayShareWhatTheCppLibraryShares) {
  ElfFacts facts;
  facts.unique = {"_ZNSs4_Rep20_S_empty_rep_storageE", "_ZGVNSt8numpunctIcE2idE",
                  "_ZZN3c104impl5cacheEvE5value"};
  EXPECT_THAT(claim_unique_symbols(facts, "one"), IsEmpty());
  EXPECT_THAT(claim_unique_symbols(facts, "two"), IsEmpty());
}

TEST_F(ElfLibrary, ThatRegistersNothingIsRefusedAgainAndAgain) {
  const auto package = make_package(root_, "_nothing_cpu_0", "");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(refusal(package).first, "kernel.loader.no-ops");
  }
}

Resolution built_package(const std::string& name) {
  const fs::path folder = fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests" / name;
  return resolve({{folder.string(), "", "Any"}, this_system("cpu", 0)});
}

int64_t call_count(const LoadedKernel& kernel) {
  std::vector<c10::IValue> stack = {at::zeros({1})};
  kernel.op("count").callBoxed(&stack);
  return stack.at(0).toInt();
}

TEST_F(ElfLibrary, InTwoVersionsKeepsItsDataApart) {
  const auto one = load("graft-tests/twin@v1", built_package("twin-1"));
  const auto two = load("graft-tests/twin@v2", built_package("twin-2"));
  EXPECT_EQ(call_count(*one), 1001);
  EXPECT_EQ(call_count(*two), 2002);
  EXPECT_EQ(call_count(*one), 2002);
  EXPECT_EQ(call_count(*two), 4004);
}

TEST_F(ElfLibrary, WithOpsUnderAnotherIdIsRefusedAgainAndAgain) {
  for (int i = 0; i < 2; ++i) {
    const auto [code, text] = refusal(built_package("foreign"));
    EXPECT_EQ(code, "kernel.loader.foreign-ops");
    EXPECT_THAT(text, HasSubstr("`graft_test_foreign::other`"));
  }
}

TEST_F(ElfLibrary, ReplacedMeanwhileIsLoadedAsItWasHashed) {
  const fs::path file = root_ / "raced.so";
  const std::string contents[] = {std::string(1 << 20, 'a'), std::string(1 << 20, 'b')};
  std::set<std::string> hashes;
  for (const auto& content : contents) {
    std::ofstream(file) << content;
    hashes.insert(file_hash(file, "sha256"));
  }
  std::atomic<bool> done{false};
  std::thread attacker([&] {
    for (size_t i = 0; !done; ++i) {
      std::ofstream(root_ / "next") << contents[i % 2];
      fs::rename(root_ / "next", file);
      // In place as well: half of the file is another's.
      std::fstream(file, std::ios::in | std::ios::out) << contents[(i + 1) % 2].substr(0, 4096);
    }
  });
  size_t num_whole = 0;
  for (int race = 0; race < 200; ++race) {
    const SealedLibrary library(file);
    const std::string hash = file_hash(library.path(), "sha256");
    std::this_thread::yield();
    std::ifstream in(library.path(), std::ios::binary);
    const std::string loaded{std::istreambuf_iterator<char>(in), {}};
    const bool whole = loaded == contents[0] || loaded == contents[1];
    EXPECT_EQ(hashes.contains(hash), whole);  // what passes the digest is what is there
    EXPECT_EQ(hash, file_hash(library.path(), "sha256"));
    num_whole += whole ? 1 : 0;
  }
  done = true;
  attacker.join();
  EXPECT_GT(num_whole, 0U);
}

TEST_F(ElfLibrary, ThatIsSealedCannotBeWritten) {
  std::ofstream(root_ / "x.so") << "content";
  const SealedLibrary library(root_ / "x.so");
  EXPECT_LT(write(library.descriptor(), "x", 1), 0);
  EXPECT_NE(ftruncate(library.descriptor(), 1), 0);
  EXPECT_THROW(SealedLibrary(root_ / "nothing.so"), NotFound);
  EXPECT_THROW(SealedLibrary(fs::path("/dev/null")), NotFound);
  EXPECT_THROW(SealedLibrary(fs::path("/tmp")), NotFound);
}

}  // namespace
}  // namespace graft::kernel

// Finding, verifying and loading packages that the build made as the Hub's are made
// (tests/kernels/).

#include "graft/kernel/loader.h"

#include <cstdlib>
#include <fstream>
#include <thread>

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/elf_check.h"
#include "graft/kernel/resolver.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// What comes before and after the canary; graft/canary/ has tests of its own.
[[maybe_unused]] const int kCanaryIsOff = setenv("GRAFT_CANARY", "off", 1);

constexpr char kVariant[] = "torch-stable-abi211-cpu-x86_64-linux";

fs::path test_package(const std::string& name) {
  return fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests" / name;
}

Resolution resolve_path(const fs::path& package) {
  return resolve({{package.string(), "", "Any"}, this_system("cpu", 0)});
}

template <typename Call>
void expect_error(const Call& call, const std::string& code,
                  const testing::Matcher<std::string>& text) {
  try {
    call();
    ADD_FAILURE() << "expected " << code;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(std::string(error.what()), text);
  }
}

std::string process_maps() {
  std::ifstream maps("/proc/self/maps");
  return {std::istreambuf_iterator<char>(maps), {}};
}

// A folder for one test, and environment variables that end with it.
class Packages : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-packages-" + std::to_string(getpid()));
    fs::create_directories(root_);
    set("KERNELS_CACHE", (root_ / "cache").string());
    set("HF_HUB_CACHE", (root_ / "cache").string());
    set("GRAFT_EMBEDDED_HUB", (root_ / "hub").string());
    set("HF_HUB_OFFLINE", "1");
  }
  void TearDown() override {
    for (const auto& name : variables_) {
      unsetenv(name.c_str());
    }
    fs::remove_all(root_);
  }

  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }

  // A damaged copy starts from a package that was right.
  fs::path copy_of(const std::string& name) {
    const fs::path copy = root_ / name;
    fs::copy(test_package(name), copy, fs::copy_options::recursive);
    return copy;
  }

  // A variant with nothing but its description.
  void add_variant(const fs::path& repository, const std::string& variant,
                   const std::string& backend, const std::string& archs = "", int version = 1) {
    const fs::path folder = repository / "build" / variant;
    fs::create_directories(folder);
    std::ofstream(folder / "metadata.json")
        << R"({"name": "demo", "id": "_demo_)" << backend << R"(_0", "version": )" << version
        << R"(, "license": "mit", "python-depends": [], "backend": {"type": ")" << backend << R"(")"
        << (archs.empty() ? "" : R"(, "archs": [)" + archs + "]") << "}}";
  }

  fs::path root_;
  std::vector<std::string> variables_;
};

TEST_F(Packages, AreFoundInLocalKernelsThenByPathThenInTheEmbeddedHub) {
  add_variant(root_ / "local", kVariant, "cpu");
  add_variant(root_ / "hub/org/repo", kVariant, "cpu");
  const ResolveRequest request{parse_layer_reference("org/repo:L"), this_system("cpu", 0)};
  EXPECT_EQ(resolve(request).source, "embedded hub");
  set("LOCAL_KERNELS", "org/other=/nowhere:org/repo=" + (root_ / "local").string());
  EXPECT_EQ(resolve(request).source, "LOCAL_KERNELS");
  EXPECT_EQ(resolve(request).folder, root_ / "local/build" / kVariant);
  for (const fs::path& path :
       {root_ / "local", root_ / "local/build", root_ / "local/build" / kVariant}) {
    EXPECT_EQ(resolve_path(path).source, "path");
    EXPECT_EQ(resolve_path(path).variant, kVariant);
  }
}

TEST_F(Packages, AreFoundInTheCacheThatPythonFilled) {
  constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";
  const fs::path repository = root_ / "cache/kernels--org--repo";
  add_variant(repository / "snapshots" / kCommit, kVariant, "cpu");
  std::ofstream(repository / "snapshots" / kCommit / "build" / kVariant / "_ops.py") << "";
  fs::create_directories(repository / "refs");
  std::ofstream(repository / "refs/v1") << kCommit;
  const auto found = resolve({parse_layer_reference("org/repo:L"), this_system("cpu", 0)});
  EXPECT_EQ(found.source, "cache");
  EXPECT_EQ(found.commit, kCommit);
}

TEST_F(Packages, ThatAreMissingAreRefusedWithEveryPlace) {
  const auto look = [&](const std::string& text) {
    return [=] { resolve({parse_layer_reference(text), this_system("cpu", 0)}); };
  };
  expect_error(look("org/repo:L"), "kernel.resolver.missing-package",
               AllOf(HasSubstr("`org/repo`"), HasSubstr("embedded hub: `"), HasSubstr("cache: `"),
                     HasSubstr("hint: ")));
  expect_error(look("/nowhere:L"), "kernel.resolver.missing-package",
               HasSubstr("path: `/nowhere`"));
  set("LOCAL_KERNELS", "org/repo=" + (root_ / "empty").string());
  expect_error(look("org/repo:L"), "kernel.resolver.local-kernels", HasSubstr("empty"));
  set("LOCAL_KERNELS", "org/repo");
  expect_error(look("org/repo:L"), "kernel.resolver.local-kernels", HasSubstr("repo=path"));
}

TEST_F(Packages, OfTheEmbeddedHubAnswerToTheirOwnVersionAlone) {
  add_variant(root_ / "hub/org/repo", kVariant, "cpu", "", 2);
  const auto look = [](const std::string& text) {
    return resolve({parse_layer_reference(text), this_system("cpu", 0)});
  };
  EXPECT_EQ(look("org/repo@v2:L").metadata.version, 2);
  expect_error([&] { look("org/repo@v1:L"); }, "kernel.resolver.no-variant",
               HasSubstr("this is version 2, v1 was asked for"));
  expect_error([&] { look("org/repo@>=0.1,<0.2:L"); }, "kernel.resolver.missing-package",
               HasSubstr("not the ref `>=0.1,<0.2`"));
}

TEST_F(Packages, WithoutAFittingVariantGiveAReasonForEachOne) {
  add_variant(root_ / "p", "torch211-cxx11-cu126-x86_64-linux", "cuda");
  add_variant(root_ / "p", "torch-stable-abi299-cpu-x86_64-linux", "cpu");
  add_variant(root_ / "p", "torch-universal", "cpu");
  expect_error(
      [&] {
        const System cpu{{2, 11}, "cpu", {}, "x86_64", "linux"};
        resolve({{(root_ / "p").string(), "", "L"}, cpu, 0});
      },
      "kernel.resolver.no-variant",
      AllOf(HasSubstr("torch211-cxx11-cu126-x86_64-linux: built for cuda, the device is cpu"),
            HasSubstr("needs torch 2.99 or later"),
            HasSubstr("torch-universal: Python files only")));
}

TEST_F(Packages, ForAnotherComputeCapabilityAreRefusedAndTheNextVariantIsTried) {
  const System cuda{{2, 11}, "cuda", {13, 0}, "x86_64", "linux"};
  add_variant(root_ / "p", "torch-stable-abi211-cu130-x86_64-linux", "cuda", R"("9.0a")");
  const ResolveRequest request{{(root_ / "p").string(), "", "L"}, cuda, 80};
  expect_error([&] { resolve(request); }, "kernel.resolver.architecture",
               HasSubstr("compute capability: built for 9.0a, the device has 8.0"));
  add_variant(root_ / "p", "torch211-cxx11-cu130-x86_64-linux", "cuda", R"("8.0+PTX")");
  const auto found = resolve(request);
  EXPECT_EQ(found.variant, "torch211-cxx11-cu130-x86_64-linux");
  ASSERT_EQ(found.refused.size(), 1U);
  EXPECT_THAT(found.refused[0].second, HasSubstr("built for 9.0a"));
}

TEST_F(Packages, WhoseMetadataContradictsTheFolderAreRefused) {
  add_variant(root_ / "p", kVariant, "cuda");
  expect_error([&] { resolve_path(root_ / "p"); }, "kernel.resolver.no-variant",
               HasSubstr("metadata.json says backend cuda, the folder's name cpu"));
}

TEST_F(Packages, ThatDependOnLibtorchLoadWithoutPythonAndWithoutCuda) {
  const auto kernel = load("graft-tests/norms", resolve_path(test_package("norms")));
  EXPECT_THAT(check_elf(kernel->folder / (kernel->metadata.id + ".abi3.so")).needed,
              testing::Contains("libtorch.so"));
  EXPECT_THAT(kernel->op_names(), testing::IsSupersetOf({"norm", "norm_wrong"}));
  EXPECT_EQ(kernel->op("norm").schema().arguments().size(), 5U);
  EXPECT_THAT(process_maps(),
              AllOf(HasSubstr("_test_norms_cpu_0.abi3.so"), Not(HasSubstr("libpython")),
                    Not(HasSubstr("libtorch_cuda")), Not(HasSubstr("libtorch_python"))));
  expect_error([&] { kernel->op("nothing"); }, "kernel.loader.missing-op", HasSubstr("norm_wrong"));
}

TEST_F(Packages, AreLoadedOnceWhicheverThreadAsksFirst) {
  const auto resolution = resolve_path(test_package("activation"));
  std::vector<std::shared_ptr<const LoadedKernel>> kernels(8);
  std::vector<std::thread> threads;
  for (auto& kernel : kernels) {
    threads.emplace_back([&] { kernel = load("graft-tests/activation", resolution); });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& kernel : kernels) {
    EXPECT_EQ(kernel, kernels[0]);
  }
}

TEST_F(Packages, PublishedWithoutLayersJsonAreKnownByTheirOps) {
  const auto kernel = load("graft-tests/activation", resolve_path(test_package("activation")));
  // Each op that is there, under the names of the published layer and of graft.
  ASSERT_TRUE(kernel->layers.contains("SiLU"));
  EXPECT_EQ(kernel->layers.at("SiLU").contract, "Activation");
  EXPECT_FALSE(kernel->layers.at("SiLU").has_backward);
}

TEST_F(Packages, BoundAtOnceFindThePythonSymbolInTheLibrary) {
  const auto resolution = resolve_path(test_package("now-binding"));
  const auto facts = check_elf(resolution.folder / "_test_now_binding_cpu_0.abi3.so");
  EXPECT_TRUE(facts.binds_now);
  EXPECT_THAT(facts.undefined_python, testing::ElementsAre("PyModule_Create2"));
  EXPECT_THAT(load("graft-tests/now-binding", resolution)->op_names(),
              testing::ElementsAre("copy"));
}

TEST_F(Packages, WithoutOpsUnderTheirIdAreRefused) {
  expect_error([] { load("graft-tests/elsewhere", resolve_path(test_package("elsewhere"))); },
               "kernel.loader.no-ops", HasSubstr("`_test_elsewhere_cpu_0`"));
}

TEST_F(Packages, OfOneIdInTwoFoldersAreRefusedInsteadOfEndingTheProcess) {
  load("graft-tests/norms", resolve_path(test_package("norms")));
  const fs::path copy = copy_of("norms");
  expect_error([&] { load("graft-tests/copy", resolve_path(copy)); }, "kernel.loader.id-taken",
               HasSubstr("_test_norms_cpu_0"));
  const fs::path other = copy_of("elsewhere");  // its library is not the one whose ops are there
  const auto resolution = resolve_path(other);
  Resolution stolen = resolution;
  stolen.metadata.id = "aten";
  stolen.metadata.digest.reset();
  expect_error([&] { load("graft-tests/stolen", stolen); }, "kernel.loader.id-taken",
               HasSubstr("`aten`"));
}

TEST_F(Packages, WithoutANativeLibraryAreRefusedAsPythonOnly) {
  add_variant(root_ / "p", kVariant, "cpu");
  std::ofstream(root_ / "p/build" / kVariant / "__init__.py") << "import triton\n";
  expect_error([&] { load("org/triton", resolve_path(root_ / "p")); }, "kernel.loader.python-only",
               HasSubstr("Python only (Triton"));
}

TEST_F(Packages, ThatWereChangedAreRefusedWithEveryDifference) {
  // Of a package that no case loads: one that is loaded answers by its id.
  const fs::path folder = copy_of("elsewhere") / "build" / kVariant;
  std::ofstream(folder / "_test_elsewhere_cpu_0.abi3.so", std::ios::app) << " ";
  std::ofstream(folder / "extra.py") << "1";
  fs::remove(folder / "_ops.py");
  fs::create_symlink("/etc/hostname", folder / "outside");
  fs::create_directory_symlink("/etc", folder / "etc");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  fs::create_directory(folder / "__pycache__");
  std::ofstream(folder / "__pycache__/x.pyc") << "1";
  expect_error([&] { load("org/changed", resolve_path(root_ / "elsewhere")); },
               "kernel.loader.digest",
               AllOf(HasSubstr("6 differences"),
                     HasSubstr("`_test_elsewhere_cpu_0.abi3.so`: expected sha256:"),
                     HasSubstr("`extra.py` is not listed"), HasSubstr("`_ops.py` is missing"),
                     HasSubstr("`outside` links to outside"), HasSubstr("`etc` is no regular file"),
                     HasSubstr("`pipe` is no regular file")));
}

TEST_F(Packages, InTheCacheMayLinkToTheBlobsOfTheirOwnRepository) {
  const fs::path repository = root_ / "cache/kernels--org--norms";
  const fs::path folder = repository / "snapshots/abc/build" / kVariant;
  fs::create_directories(folder.parent_path());
  fs::create_directories(repository / "blobs");
  fs::copy(test_package("norms") / "build" / kVariant, folder);
  fs::rename(folder / "layers.json", repository / "blobs/1234");
  fs::create_symlink("../../../../blobs/1234", folder / "layers.json");
  const auto digest = *read_metadata(folder / "metadata.json").digest;
  EXPECT_THAT(digest_violations(folder, digest), testing::IsEmpty());
  fs::rename(repository / "blobs/1234", root_ / "1234");
  fs::remove(folder / "layers.json");
  fs::create_symlink(root_ / "1234", folder / "layers.json");
  EXPECT_THAT(digest_violations(folder, digest),
              testing::ElementsAre(HasSubstr("links to outside")));
}

TEST_F(Packages, WithTooManyFilesAreRefused) {
  const fs::path folder = root_ / "many";
  fs::create_directories(folder);
  for (int i = 0; i < 4097; ++i) {
    std::ofstream(folder / std::to_string(i)) << "";
  }
  EXPECT_THAT(digest_violations(folder, {"sha256", {}}),
              testing::ElementsAre(HasSubstr("more than 4096")));
}

TEST_F(Packages, HashesAreThoseOfTheStandard) {
  std::ofstream(root_ / "abc") << "abc";
  std::ofstream(root_ / "empty") << "";
  EXPECT_EQ(file_hash(root_ / "abc", "sha256"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
  EXPECT_EQ(file_hash(root_ / "empty", "sha256"), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
  EXPECT_EQ(
      file_hash(root_ / "abc", "sha512"),
      "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==");
}

// A library as bytes, to be damaged.
class ElfFile : public Packages {
 protected:
  void SetUp() override {
    Packages::SetUp();
    std::ifstream in(test_package("norms") / "build" / kVariant / "_test_norms_cpu_0.abi3.so",
                     std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(in), {});
    ASSERT_GT(bytes_.size(), 4096U);
  }

  std::string code_of(const std::string& bytes) {
    std::ofstream(root_ / "library.so", std::ios::binary) << bytes;
    try {
      check_elf(root_ / "library.so");
    } catch (const LoadError& error) {
      return error.code();
    }
    return "accepted";
  }

  std::string bytes_;
};

TEST_F(ElfFile, ThatIsNoLibraryForThisMachineIsRefused) {
  EXPECT_EQ(code_of(bytes_), "accepted");
  EXPECT_EQ(code_of(""), "kernel.elf.format");
  EXPECT_EQ(code_of("#!/bin/sh\n" + std::string(200, ' ')), "kernel.elf.format");
  for (const size_t offset : {4U, 5U, 16U, 18U}) {  // class, byte order, type, machine
    std::string changed = bytes_;
    changed[offset] = 7;
    EXPECT_EQ(code_of(changed), "kernel.elf.format") << offset;
  }
}

TEST_F(ElfFile, WithOffsetsOutsideItselfIsRefusedWherever) {
  for (const size_t size : {63U, 64U, 200U, 500U, 3000U}) {
    EXPECT_EQ(code_of(bytes_.substr(0, size)), "kernel.elf.format") << size;
  }
  std::string changed = bytes_;
  for (size_t i = 32; i < 40; ++i) {  // offset of the program headers
    changed[i] = '\xff';
  }
  EXPECT_EQ(code_of(changed), "kernel.elf.format");
}

TEST_F(ElfFile, ThatWantsAnExecutableStackIsRefused) {
  constexpr size_t kHeaderSize = 64, kProgramHeaderSize = 56;
  bool found = false;
  std::string changed = bytes_;
  for (size_t at = kHeaderSize; !found && at < kHeaderSize + 32 * kProgramHeaderSize;
       at += kProgramHeaderSize) {
    found = changed.compare(at, 4, "\x51\xe5\x74\x64") == 0;  // PT_GNU_STACK
    if (found) {
      changed[at + 4] |= 1;
    }
  }
  ASSERT_TRUE(found);
  EXPECT_EQ(code_of(changed), "kernel.elf.executable-stack");
}

TEST_F(ElfFile, ThatNeedsMoreOfPythonIsRefused) {
  std::string changed = bytes_;
  const auto at = changed.find("PyModule_Create2");
  ASSERT_NE(at, std::string::npos);
  changed.replace(at, 16, "PyErr_SetString0");
  EXPECT_EQ(code_of(changed), "kernel.elf.python");
}

TEST_F(ElfFile, ThatNeedsALibraryByPathIsRefused) {
  std::string changed = bytes_;
  const auto at = changed.find("libtorch.so");
  ASSERT_NE(at, std::string::npos);
  changed[at + 3] = '/';
  EXPECT_EQ(code_of(changed), "kernel.elf.needed");
}

}  // namespace
}  // namespace graft::kernel

// The cases of a kernel's files that a loader has to get right, by their names; those of signatures
// and publishers stand in trust/decide_test.cpp.

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/metadata.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class TrustSuite : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-trust-suite-" + std::to_string(getpid()));
    write("_demo.abi3.so", "library");
    write("data/metadata.json", "nested");
    digest_.algorithm = "sha256";
    for (const char* name : {"_demo.abi3.so", "data/metadata.json"}) {
      digest_.files[name] = file_hash(folder_ / name, "sha256");
    }
    write("metadata.json", "left out");
    write("metadata.json.sigstore", "left out");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& content) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << content;
  }
  std::vector<std::string> violations() const { return digest_violations(folder_, digest_); }
  std::string metadata_code(const std::string& digest) {
    write("metadata.json", R"({"name": "demo", "id": "_demo", "version": 1, "license": "mit",
      "python-depends": [], "backend": {"type": "cpu"}, "digest": )" +
                               digest + "}");
    try {
      read_metadata(folder_ / "metadata.json");
    } catch (const Error& error) {
      return error.code();
    }
    return "accepted";
  }

  fs::path folder_;
  Digest digest_;
};

TEST_F(TrustSuite, FilesAsPublished) { EXPECT_THAT(violations(), IsEmpty()); }

TEST_F(TrustSuite, UnknownFileInTheVariant) {
  write("extra.so", "");
  EXPECT_THAT(violations(), ElementsAre(HasSubstr("`extra.so` is not listed")));
}

TEST_F(TrustSuite, MissingFile) {
  fs::remove(folder_ / "_demo.abi3.so");
  EXPECT_THAT(violations(), ElementsAre(HasSubstr("`_demo.abi3.so` is missing")));
}

TEST_F(TrustSuite, ChangedFile) {
  write("_demo.abi3.so", "Library");
  EXPECT_THAT(violations(), ElementsAre(HasSubstr("`_demo.abi3.so`: expected sha256:")));
}

TEST_F(TrustSuite, SmuggledBytecode) {
  write("__pycache__/layers.cpython-311.pyc", "what Python leaves");
  write("data/__pycache__/x.pyc", "what Python leaves");
  EXPECT_THAT(violations(), IsEmpty());
  write("layers.pyc", "Python would run it, having no source");
  write("my__pycache__/x.py", "");
  EXPECT_THAT(violations(), UnorderedElementsAre(HasSubstr("`layers.pyc` is not listed"),
                                                 HasSubstr("`my__pycache__/x.py` is not listed")));
}

TEST_F(TrustSuite, ChangedNestedMetadata) {
  write("data/metadata.json", "changed");
  EXPECT_THAT(violations(), ElementsAre(HasSubstr("`data/metadata.json`")));
}

TEST_F(TrustSuite, LinkToOutsideAndWhatIsNoFile) {
  fs::create_symlink("/etc/passwd", folder_ / "link");
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(violations(), UnorderedElementsAre(HasSubstr("`link` links to outside"),
                                                 HasSubstr("`pipe` is no regular file")));
}

TEST_F(TrustSuite, AllDifferencesAreNamedTogether) {
  write("extra", "");
  write("data/metadata.json", "changed");
  fs::remove(folder_ / "_demo.abi3.so");
  EXPECT_EQ(violations().size(), 3);
}

TEST_F(TrustSuite, AlgorithmSha1) {
  EXPECT_EQ(metadata_code(R"({"algorithm": "sha1", "files": {}})"), "kernel.metadata.digest");
}

TEST_F(TrustSuite, DigestOfWrongLength) {
  EXPECT_EQ(metadata_code(R"({"algorithm": "sha256", "files": {"a": "c2hvcnQ="}})"),
            "kernel.metadata.digest");
}

TEST_F(TrustSuite, DuplicateKeyInSignedMetadata) {
  EXPECT_EQ(metadata_code(R"({"algorithm": "sha256", "files": {}}, "digest": {})"),
            "kernel.metadata.duplicate-key");
}

}  // namespace
}  // namespace graft::kernel

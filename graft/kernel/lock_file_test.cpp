#include "graft/kernel/lock_file.h"

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";

// As `kernels lock` of kernels 0.17.2 writes it.
constexpr char kNew[] = R"([
  {
    "dependency": {
      "repo-id": "acme/norms",
      "version": 1
    },
    "lock": {
      "commit": "0123456789abcdef0123456789abcdef01234567"
    }
  },
  {
    "dependency": {
      "repo-id": "acme/norms",
      "revision": "main"
    },
    "lock": {
      "commit": "1123456789abcdef0123456789abcdef01234567"
    }
  }
])";

// As `kernels lock` of kernels 0.16 writes it.
constexpr char kOld[] = R"([
  {
    "repo_id": "acme/norms",
    "sha": "0123456789abcdef0123456789abcdef01234567",
    "variants": {
      "torch211-cxx11-cu130-x86_64-linux": {
        "hash": "sha256-00000000000000000000000000000000000000000000000000000000000000ff",
        "hash_type": "git_lfs_concat"
      }
    }
  }
])";

std::pair<std::string, std::string> error_of(const std::string& text) {
  try {
    parse_lock(text, "kernels.lock");
  } catch (const FormatError& error) {
    return {error.code(), error.what()};
  }
  return {"no error", ""};
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(LockFile, OfEitherFormIsReadAndWrittenByteForByte) {
  const auto lock = parse_lock(kNew, "kernels.lock");
  ASSERT_EQ(lock.entries.size(), 2U);
  EXPECT_EQ(lock.entries[0].name(), "acme/norms@v1");
  EXPECT_EQ(lock.entries[0].commit, kCommit);
  EXPECT_EQ(lock.entries[1].name(), "acme/norms@main");
  EXPECT_EQ(lock.entries[1].line, 11U);
  EXPECT_EQ(lock_text(lock), kNew);
  const auto old = parse_lock(kOld, "kernels.lock");
  ASSERT_EQ(old.entries.size(), 1U);
  EXPECT_EQ(old.entries[0].hashes.size(), 1U);
  EXPECT_EQ(hashes_text(old), kOld);
  EXPECT_EQ(lock_text(parse_lock("[]", "kernels.lock")), "[]");
  EXPECT_EQ(parse_lock(replaced(kNew, "abcdef", "ABCDEF"), "l").entries[0].commit, kCommit);
}

TEST(LockFile, IsSortedWithVersionsBeforeRevisions) {
  LockFile lock;
  for (const auto& [repo, version, revision] :
       {std::tuple<const char*, int, const char*>{"b/b", 10, ""},
        {"b/b", 9, ""},
        {"a/b", 0, "main"},
        {"a/b", 3, ""}}) {
    lock.entries.push_back({repo,
                            *revision == '\0' ? std::optional<int64_t>(version) : std::nullopt,
                            revision,
                            kCommit,
                            {},
                            0});
  }
  const auto sorted = parse_lock(lock_text(lock), "l").entries;
  EXPECT_EQ(sorted[0].name(), "a/b@v3");
  EXPECT_EQ(sorted[1].name(), "a/b@main");
  EXPECT_EQ(sorted[2].name(), "b/b@v9");
  EXPECT_EQ(sorted[3].name(), "b/b@v10");
}

TEST(LockFile, ThatIsWrongIsRefusedWithItsLine) {
  const auto expect = [](const std::string& text, const std::string& reason, int line) {
    const auto [code, message] = error_of(text);
    EXPECT_EQ(code, "kernel.lock." + reason) << text;
    EXPECT_THAT(message, HasSubstr(fmt::format("`kernels.lock` line {}: ", line))) << text;
  };
  const std::string lock = kNew, old = kOld;
  expect(lock.substr(0, lock.size() - 40), "json", 17);
  expect("", "json", 1);
  expect("{}", "type", 1);
  expect("[3]", "type", 1);
  expect(replaced(lock, "\"version\": 1", "\"version\": 1, \"graft\": 2"), "unknown-key", 5);
  expect(replaced(lock, "\"commit\": \"1", "\"hash\": 1, \"commit\": \"1"), "unknown-key", 17);
  expect(replaced(lock, "\"version\": 1", "\"version\": \"1\""), "type", 5);
  expect(replaced(lock, "\"version\": 1", "\"version\": -1"), "type", 5);
  expect(replaced(lock, "\"version\": 1", "\"version\": 1, \"revision\": \"main\""), "missing-key",
         3);
  expect(replaced(lock, ",\n      \"version\": 1", ""), "missing-key", 3);
  expect(replaced(lock, "\"revision\": \"main\"", "\"version\": 1"), "duplicate", 11);
  expect(replaced(lock, "\"version\": 1", "\"version\": 1, \"version\": 1"), "duplicate-key", 5);
  expect(replaced(lock, kCommit, "main"), "commit", 8);
  expect(replaced(lock, kCommit, std::string(kCommit).substr(1)), "commit", 8);
  expect(replaced(lock, "acme/norms", "acme/no rms"), "repo-id", 4);
  expect(replaced(lock, "acme/norms", "../norms"), "repo-id", 4);
  expect(replaced(lock, "acme/norms", "norms"), "repo-id", 4);
  expect(replaced(lock, "  {\n", "<<<<<<< ours\n  {\n"), "conflict", 2);
  expect(replaced(lock, "  },\n", "  },\n=======\n"), "conflict", 7);
  expect(replaced(old, "git_lfs_concat", "md5"), "hash", 6);
  expect(replaced(old, "sha256-0", "sha256-"), "hash", 6);
  expect(replaced(old,
                  "        \"hash\": \"sha256-00000000000000000000000000000000000000000000000000"
                  "000000000000ff\",\n",
                  ""),
         "missing-key", 2);
  expect(replaced(old, "torch211", "../torch211"), "hash", 6);
}

TEST(LockFile, HashesAVariantAsKernelsBefore017Did) {
  // From the released kernels 0.16's rule: sorted paths, each followed by its id's raw bytes.
  std::vector<hub::RepoFile> files(4);
  files[0].path = "build/v/b.so";
  files[0].git_oid = std::string(40, '0');
  files[0].sha256 = std::string(64, 'a');
  files[1].path = "build/v/a.py";
  files[1].git_oid = std::string(40, 'b');
  files[2].path = "build/v/__pycache__/a.pyc";
  files[2].git_oid = std::string(40, 'c');
  files[3].path = "build/other/a.py";
  files[3].git_oid = std::string(40, 'd');
  // python: sha256(b"a.py" + b"\xbb" * 20 + b"b.so" + b"\xaa" * 32).hexdigest()
  EXPECT_EQ(variant_hash(files, "v"),
            "1611996c2eebf963fa939633138226c2457969cd943f58c37f345ac2c033230c");
}

TEST(LockFile, TakesTheHashesFromTheFileBesideIt) {
  const fs::path folder = fs::path(testing::TempDir()) / fmt::format("graft-lock-{}", getpid());
  fs::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name) << text;
  };
  write("kernels.lock", kNew);
  write("kernels.hashes.lock", kOld);
  const auto lock = read_lock_file(folder / "kernels.lock");
  EXPECT_EQ(lock.entries[0].hashes.size(), 1U);
  EXPECT_TRUE(lock.entries[1].hashes.empty());
  write("kernels.hashes.lock", replaced(kOld, kCommit, "2" + std::string(kCommit).substr(1)));
  EXPECT_THROW(read_lock_file(folder / "kernels.lock"), FormatError);
  EXPECT_THROW(read_lock_file(folder / "none.lock"), NotFound);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace graft::kernel

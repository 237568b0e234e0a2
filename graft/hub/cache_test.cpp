#include "graft/hub/cache.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/hub/environment.h"

namespace graft::hub {
namespace {

namespace fs = std::filesystem;

constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";

class Cache : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-cache-" + std::to_string(getpid()));
    repo_ = root_ / "models--org--name";
    fs::create_directories(repo_ / "snapshots" / kCommit);
    write_ref("main", kCommit);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write_ref(const std::string& name, const std::string& content) {
    fs::create_directories((repo_ / "refs" / name).parent_path());
    std::ofstream(repo_ / "refs" / name) << content;
  }

  fs::path root_;
  fs::path repo_;
};

TEST_F(Cache, FindsASnapshotByDefaultBranchByNestedRefAndByCommit) {
  write_ref("refs/pr/3", kCommit);
  for (const char* revision : {"", "main", "refs/pr/3", kCommit}) {
    const auto found = find_snapshot(root_, RepoType::kModel, "org/name", revision);
    ASSERT_TRUE(found) << revision;
    EXPECT_EQ(found->commit, kCommit);
    EXPECT_EQ(found->folder, repo_ / "snapshots" / kCommit);
  }
}

TEST_F(Cache, FindsNothingForWhatIsNotThere) {
  EXPECT_FALSE(find_snapshot(root_, RepoType::kModel, "org/other"));
  EXPECT_FALSE(find_snapshot(root_, RepoType::kKernel, "org/name"));
  EXPECT_FALSE(find_snapshot(root_, RepoType::kModel, "org/name", "v2"));
  EXPECT_FALSE(find_snapshot(root_, RepoType::kModel, "org/name", std::string(40, 'a')));
}

TEST_F(Cache, TakesNoRefThatIsNoCommit) {
  write_ref("short", "0123");
  write_ref("path", "../../../../etc/passwd--------------------");
  EXPECT_FALSE(find_snapshot(root_, RepoType::kModel, "org/name", "short"));
  EXPECT_FALSE(find_snapshot(root_, RepoType::kModel, "org/name", "path"));
}

TEST_F(Cache, RefusesNamesThatLeaveTheCache) {
  for (const char* id :
       {"../x", "a/../b", "/etc", "a/b/c", "", "a--b/c", "org/na me", ".hidden/x"}) {
    EXPECT_THROW(find_snapshot(root_, RepoType::kModel, id), InvalidArgument) << id;
  }
  for (const char* revision : {"../main", "/main", "a//b", "a\\b", "a b", "main/"}) {
    EXPECT_THROW(find_snapshot(root_, RepoType::kModel, "org/name", revision), InvalidArgument)
        << revision;
  }
}

TEST(HubEnvironment, FollowsTheDocumentedOrderOfVariables) {
  for (const char* name : {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "KERNELS_CACHE",
                           "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}) {
    unsetenv(name);
  }
  setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(cache_folder(), "/home/someone/.cache/huggingface/hub");
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  EXPECT_EQ(cache_folder(), "/xdg/huggingface/hub");
  setenv("HF_HOME", "~/hf", 1);
  EXPECT_EQ(cache_folder(), "/home/someone/hf/hub");
  setenv("HUGGINGFACE_HUB_CACHE", "/old", 1);
  EXPECT_EQ(cache_folder(), "/old");
  setenv("HF_HUB_CACHE", "/new", 1);
  EXPECT_EQ(cache_folder(), "/new");
  EXPECT_EQ(kernels_cache_folder(), "/new");
  setenv("KERNELS_CACHE", "/kernels", 1);
  EXPECT_EQ(kernels_cache_folder(), "/kernels");
  EXPECT_FALSE(offline());
  setenv("TRANSFORMERS_OFFLINE", "yes", 1);
  EXPECT_TRUE(offline());
  setenv("HF_HUB_OFFLINE", "0", 1);
  EXPECT_FALSE(offline());
}

}  // namespace
}  // namespace graft::hub

#include "graft/core/env.h"

#include <cstdlib>

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft {
namespace {

TEST(Env, ReadsUseHubKernelsAsTransformersDoes) {
  unsetenv("USE_HUB_KERNELS");
  EXPECT_TRUE(env::use_hub_kernels());
  for (const char* on : {"1", "on", "YES", "True"}) {
    setenv("USE_HUB_KERNELS", on, 1);
    EXPECT_TRUE(env::use_hub_kernels()) << on;
  }
  for (const char* off : {"0", "OFF", "NO", "", "AUTO", "2"}) {
    setenv("USE_HUB_KERNELS", off, 1);
    EXPECT_FALSE(env::use_hub_kernels()) << off;
  }
  unsetenv("USE_HUB_KERNELS");
}

TEST(Env, RefusesADisableKernelMappingThatIsNoInteger) {
  setenv("DISABLE_KERNEL_MAPPING", "true", 1);
  EXPECT_THROW(env::disable_kernel_mapping(), InvalidArgument);
  setenv("DISABLE_KERNEL_MAPPING", "1", 1);
  EXPECT_TRUE(env::disable_kernel_mapping());
  setenv("DISABLE_KERNEL_MAPPING", "0", 1);
  EXPECT_FALSE(env::disable_kernel_mapping());
  unsetenv("DISABLE_KERNEL_MAPPING");
  EXPECT_FALSE(env::disable_kernel_mapping());
}

TEST(Env, ExpandsPathsAsPythonDoes) {
  setenv("HOME", "/home/a b", 1);
  setenv("GRAFT_TEST_PART", "x", 1);
  unsetenv("GRAFT_TEST_NONE");
  const std::pair<const char*, const char*> cases[] = {
      {"~", "/home/a b"},
      {"~/c", "/home/a b/c"},
      {"/c/~", "/c/~"},
      {"~nobody-is-called-this/c", "~nobody-is-called-this/c"},
      {"~root/c", "/root/c"},
      {"$HOME/c", "/home/a b/c"},
      {"/${GRAFT_TEST_PART}y/$GRAFT_TEST_PART", "/xy/x"},
      {"/$GRAFT_TEST_NONE/${GRAFT_TEST_NONE}", "/$GRAFT_TEST_NONE/${GRAFT_TEST_NONE}"},
      {"/a$", "/a$"},
      {"/$$GRAFT_TEST_PART", "/$x"},
      {"/${", "/${"},
      {"/${}", "/${}"},
      {"", ""}};
  for (const auto& [text, expanded] : cases) {
    EXPECT_EQ(env::expand_path(text), expanded) << text;
  }
  setenv("HOME", "/", 1);
  EXPECT_EQ(env::expand_path("~/c"), "/c");
  setenv("HOME", "", 1);  // Python's too
  EXPECT_EQ(env::user_home(), "/");
  unsetenv("HOME");  // then the system's list of users
  EXPECT_TRUE(env::user_home().is_absolute());
  setenv("GRAFT_TEST_PART", "", 1);
  EXPECT_FALSE(env::folder("GRAFT_TEST_PART"));
  unsetenv("GRAFT_TEST_PART");
}

TEST(Error, ComposesWhereMessageAndHint) {
  const NotFound error("hub.cache", "snapshot-missing", "`a/b`: expected a snapshot, got none",
                       "run x");
  EXPECT_STREQ(error.what(), "[hub.cache] `a/b`: expected a snapshot, got none\nhint: run x");
  EXPECT_EQ(error.code(), "hub.cache.snapshot-missing");
  EXPECT_EQ(error.exit_code(), 1);
}

}  // namespace
}  // namespace graft

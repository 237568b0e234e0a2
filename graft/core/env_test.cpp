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

TEST(Error, ComposesWhereMessageAndHint) {
  const NotFound error("hub.cache", "snapshot-missing", "`a/b`: expected a snapshot, got none",
                       "run x");
  EXPECT_STREQ(error.what(), "[hub.cache] `a/b`: expected a snapshot, got none\nhint: run x");
  EXPECT_EQ(error.code(), "hub.cache.snapshot-missing");
  EXPECT_EQ(error.exit_code(), 1);
}

}  // namespace
}  // namespace graft

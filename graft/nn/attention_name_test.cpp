#include "graft/nn/attention_name.h"

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::nn {
namespace {

AttentionName kernel_name(const std::string& repository, const std::string& ref,
                          const std::string& function) {
  AttentionName name;
  name.kind = AttentionKind::kKernel;
  name.repository = repository;
  name.ref = ref;
  name.function = function;
  return name;
}

TEST(AttentionName, ReadsEveryBuiltInName) {
  EXPECT_EQ(parse_attention_name("eager").kind, AttentionKind::kEager);
  EXPECT_EQ(parse_attention_name("sdpa").kind, AttentionKind::kSdpa);
  EXPECT_EQ(parse_attention_name("flash_attention_2").kind, AttentionKind::kFlash2);
  EXPECT_EQ(parse_attention_name("flash_attention_3").kind, AttentionKind::kFlash3);
  EXPECT_EQ(parse_attention_name("graft").kind, AttentionKind::kGraft);
}

TEST(AttentionName, ReadsRepositoryRefAndFunctionOfAKernel) {
  const std::string flash = "kernels-community/flash-attn2";
  EXPECT_EQ(parse_attention_name(flash), kernel_name(flash, "", ""));
  EXPECT_EQ(parse_attention_name(flash + "@v1"), kernel_name(flash, "v1", ""));
  EXPECT_EQ(parse_attention_name("org/repo:fn"), kernel_name("org/repo", "", "fn"));
  EXPECT_EQ(parse_attention_name("org/repo@v1:fn"), kernel_name("org/repo", "v1", "fn"));
  EXPECT_EQ(parse_attention_name("org/repo@>=2.0,<3.0"), kernel_name("org/repo", ">=2.0,<3.0", ""));
}

TEST(AttentionName, FollowsTransformersWhereItIsOdd) {
  EXPECT_EQ(parse_attention_name("org/repo@"), kernel_name("org/repo", "", ""));
  EXPECT_EQ(parse_attention_name("org/repo:fn@v1"), kernel_name("org/repo", "", "fn@v1"));
}

TEST(AttentionName, KeepsPagedApartFromWhatItStandsBefore) {
  const AttentionName eager = parse_attention_name("paged|eager");
  EXPECT_TRUE(eager.paged);
  EXPECT_EQ(eager.kind, AttentionKind::kEager);
  AttentionName expected = kernel_name("org/repo", "v2", "");
  expected.paged = true;
  EXPECT_EQ(parse_attention_name("paged|org/repo@v2"), expected);
}

TEST(AttentionName, RefusesWhatIsNeitherAKnownNameNorAKernel) {
  for (const char* text : {"", "flash", "SDPA", "a/b/c", "/abs/path:fn", "org/repo@refs/pr/3",
                           "org/repo:", "org/repo@a:b:c", "org/", "/repo", "../repo", "org/..",
                           "paged|", "paged", "other|sdpa", "paged|paged|sdpa", "org/repo:fn/x"}) {
    EXPECT_THROW(parse_attention_name(text), InvalidArgument) << text;
  }
}

}  // namespace
}  // namespace graft::nn

#include "graft/hub/version_spec.h"

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::hub {
namespace {

TagVersion version(std::string_view text) {
  const auto parsed = parse_tag_version(text);
  EXPECT_TRUE(parsed) << text;
  return parsed.value_or(TagVersion{});
}

bool fits(std::string_view specifier, std::string_view text) {
  return VersionSpecifier::parse(specifier).contains(version(text));
}

TEST(VersionSpec, OrdersAsPep440Does) {
  // The order of the specification's own example, with equal neighbours left out.
  const char* ascending[] = {"0.9",      "1.0.dev4", "1.0a1",  "1.0a2.dev4", "1.0a12",
                             "1.0b1",    "1.0b2",    "1.0rc1", "1.0",        "1.0.post2",
                             "1.1.dev1", "1.1",      "1.10",   "2.0",        "1!0.1"};
  for (size_t i = 0; i < std::size(ascending); ++i) {
    for (size_t j = 0; j < std::size(ascending); ++j) {
      EXPECT_EQ(compare(version(ascending[i]), version(ascending[j])), i <=> j)
          << ascending[i] << " beside " << ascending[j];
    }
  }
  EXPECT_EQ(compare(version("1.0"), version("1.0.0")), std::strong_ordering::equal);
}

TEST(VersionSpec, ReadsNoTextThatIsNoVersion) {
  for (const char* text : {"", "v1.0", "1.", ".1", "1..2", "1.0+local", "main", "1.0x", "-1",
                           "99999999999999999999999"}) {
    EXPECT_FALSE(parse_tag_version(text)) << text;
  }
}

TEST(VersionSpec, HoldsClausesAsPackagingDoes) {
  EXPECT_TRUE(fits(">=0.1,<0.2", "0.1.7"));
  EXPECT_FALSE(fits(">=0.1,<0.2", "0.2.0"));
  EXPECT_FALSE(fits("<0.2", "0.2rc1"));
  EXPECT_TRUE(fits("<0.2rc2", "0.2rc1"));
  EXPECT_FALSE(fits(">1.0", "1.0.post1"));
  EXPECT_TRUE(fits(">1.0", "1.0.1"));
  EXPECT_TRUE(fits("==1.2.*", "1.2.9"));
  EXPECT_FALSE(fits("==1.2.*", "1.20"));
  EXPECT_TRUE(fits("!=1.2.*, >= 1", "1.3"));
  EXPECT_TRUE(fits("~=0.3.1", "0.3.9"));
  EXPECT_FALSE(fits("~=0.3.1", "0.4"));
  EXPECT_TRUE(fits("==v0.1", "0.1.0"));
}

TEST(VersionSpec, TakesTheHighestAndPrereleasesLast) {
  const auto best = [](std::string_view text, std::vector<std::string_view> among) -> std::string {
    std::vector<TagVersion> versions;
    for (const auto name : among) {
      versions.push_back(version(name));
    }
    const auto found = VersionSpecifier::parse(text).best(versions);
    return found ? std::string(among[*found]) : "";
  };
  EXPECT_EQ(best(">=0.1", {"0.1.0", "0.10.0", "0.9.0", "0.11.0rc1"}), "0.10.0");
  EXPECT_EQ(best(">=0.11.0rc1", {"0.1.0", "0.11.0rc1"}), "0.11.0rc1");
  EXPECT_EQ(best(">0.10", {"0.1.0", "0.11.0rc1"}), "0.11.0rc1");
  EXPECT_EQ(best(">3", {"0.1.0"}), "");
}

TEST(VersionSpec, NamesTheClauseThatCannotBeRead) {
  for (const char* text : {"", ",", ">=", ">=0.1,", "0.1", "=>0.1", "~=1", ">=1.*", ">=x"}) {
    try {
      VersionSpecifier::parse(text);
      ADD_FAILURE() << text << " was read";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.code(), "hub.revision.specifier") << text;
    }
  }
  EXPECT_TRUE(is_version_specifier(">=0.1"));
  EXPECT_FALSE(is_version_specifier("v0.1.0"));
}

}  // namespace
}  // namespace graft::hub

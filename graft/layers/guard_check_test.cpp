// What the guard's comparison lets pass.
#include "graft/layers/guard_check.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::layers {
namespace {

using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::string compared(const std::vector<float>& candidate, const std::vector<float>& reference,
                     const std::vector<float>& exact) {
  return compare("x", at::tensor(candidate), at::tensor(reference),
                 at::tensor(exact).to(at::kDouble));
}

TEST(GuardCheck, SpecialValuesFollowTheReferenceOrFloat64) {
  EXPECT_EQ(compared({1, kNan, kInf}, {1, kNan, kInf}, {1, kNan, kInf}), "");
  // libtorch's gelu(inf) on some processors: NaN in float32, infinity in float64.
  EXPECT_EQ(compared({1, kInf}, {1, kNan}, {1, kInf}), "");
  EXPECT_EQ(compared({1, kNan}, {1, kNan}, {1, kInf}), "");
  EXPECT_THAT(compared({1, 2}, {1, kNan}, {1, kNan}), HasSubstr("expected NaN exactly where"));
  EXPECT_THAT(compared({1, 2}, {1, kNan}, {1, kInf}), HasSubstr("expected NaN exactly where"));
  EXPECT_THAT(compared({kNan, 2}, {1, 2}, {1, 2}), HasSubstr("expected NaN exactly where"));
  EXPECT_THAT(compared({kInf, 2}, {1, 2}, {1, 2}), HasSubstr("expected infinities exactly where"));
}

TEST(GuardCheck, AnErrorBeyondTwiceTheReferencesIsRefused) {
  EXPECT_EQ(compared({1.0002F, 2}, {1.0001F, 2}, {1, 2}), "");
  EXPECT_THAT(compared({1.0003F, 2}, {1.0001F, 2}, {1, 2}),
              HasSubstr("at most twice the reference's"));
  // A value that is right where the reference is NaN is held against float64 all the same.
  EXPECT_THAT(compared({1, 3}, {1, kNan}, {1, 2}), HasSubstr("at most twice the reference's"));
}

}  // namespace
}  // namespace graft::layers

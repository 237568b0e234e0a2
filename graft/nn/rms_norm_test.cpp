#include "graft/nn/rms_norm.h"

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/nn/linear.h"

namespace graft::nn {
namespace {

TEST(ResidualStream, HasTheBitsOfAddingAtOnce) {
  at::manual_seed(0);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    RmsNorm norm(16, 1e-6, layers::RmsNormVariant::kCastBeforeWeight);
    norm.assign_weight("weight", at::randn({16}).to(dtype));
    const at::Tensor x = at::randn({2, 3, 16}).to(dtype), delta = at::randn({2, 3, 16}).to(dtype);
    const at::Tensor second = at::randn({2, 3, 16}).to(dtype);
    ResidualStream stream(x);
    stream.add(delta);
    EXPECT_TRUE(at::equal(stream.normalized(norm), norm.forward(x + delta)));
    stream.add(second);
    stream.keep_last(2);
    EXPECT_TRUE(
        at::equal(stream.normalized(norm), norm.forward((x + delta + second).slice(1, 1, 3))));
    EXPECT_TRUE(at::equal(stream.value(), (x + delta + second).slice(1, 1, 3)));
  }
}

TEST(Block, DeclaresWeightsWithoutMemoryAndTakesThemLater) {
  const auto owned = std::make_shared<Linear>(4, 3, true);
  Linear& linear = *owned;
  EXPECT_TRUE(linear.weight.is_meta());
  const auto slots = list_weights(linear);
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_EQ(slots[0].key, "weight");
  EXPECT_EQ(slots[0].shape, (std::vector<int64_t>{3, 4}));
  linear.assign_weight("weight", at::ones({3, 4}));
  linear.assign_weight("bias", at::ones({3}));
  EXPECT_TRUE(at::equal(linear.forward(at::ones({1, 4})), at::full({1, 3}, 5.0)));
  EXPECT_TRUE(linear.named_parameters()["weight"].is_same(linear.weight));
  EXPECT_THROW(linear.assign_weight("weight", at::ones({4, 3})), InternalError);
  EXPECT_THROW(linear.assign_weight("scale", at::ones({3})), InternalError);
}

}  // namespace
}  // namespace graft::nn

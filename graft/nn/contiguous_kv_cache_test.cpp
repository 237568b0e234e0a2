#include "graft/nn/contiguous_kv_cache.h"

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::nn {
namespace {

constexpr int64_t kHeads = 2, kDim = 4;

at::Tensor random_kv(int64_t batch, int64_t length) {
  return at::randn({batch, kHeads, length, kDim});
}

TEST(DynamicKvCache, HoldsWhatConcatenationWouldHold) {
  DynamicKvCache cache(2);
  std::vector<at::Tensor> keys, values;
  int64_t total = 0;
  for (const int64_t step : {5, 1, 1, 90, 1, 70}) {
    for (int64_t layer = 0; layer < 2; ++layer) {
      const at::Tensor key = random_kv(3, step), value = random_kv(3, step);
      const auto [all_keys, all_values] = cache.update(layer, key, value);
      if (layer == 0) {
        keys.push_back(key);
        values.push_back(value);
        EXPECT_TRUE(at::equal(all_keys, at::cat(keys, 2)));
        EXPECT_TRUE(at::equal(all_values, at::cat(values, 2)));
      }
    }
    cache.advance(step);
    total += step;
    EXPECT_EQ(cache.length(), total);
  }
  EXPECT_EQ(cache.max_length(), -1);
}

TEST(DynamicKvCache, DoesNotMoveStorageForEveryToken) {
  DynamicKvCache cache(1);
  int64_t moves = 0;
  const void* last = nullptr;
  for (int64_t i = 0; i < 2000; ++i) {
    const auto [keys, values] = cache.update(0, random_kv(1, 1), random_kv(1, 1));
    moves += keys.storage().data() != last ? 1 : 0;
    last = keys.storage().data();
    cache.advance(1);
  }
  EXPECT_LT(moves, 14);
}

TEST(DynamicKvCache, ReordersRowsForBeams) {
  DynamicKvCache cache(1);
  const at::Tensor key = random_kv(3, 7), value = random_kv(3, 7);
  cache.update(0, key, value);
  cache.advance(7);
  const at::Tensor order = at::tensor({2, 2, 0, 1}, at::TensorOptions().dtype(at::kLong));
  cache.reorder(order);
  const at::Tensor next = random_kv(4, 1);
  const auto [keys, values] = cache.update(0, next, next);
  EXPECT_TRUE(at::equal(keys, at::cat({key.index_select(0, order), next}, 2)));
  EXPECT_TRUE(at::equal(values, at::cat({value.index_select(0, order), next}, 2)));
}

TEST(DynamicKvCache, StartsAnewAfterResetWithAnotherBatchSize) {
  DynamicKvCache cache(1);
  cache.update(0, random_kv(3, 7), random_kv(3, 7));
  cache.advance(7);
  cache.reset();
  const at::Tensor key = random_kv(1, 2);
  EXPECT_TRUE(at::equal(cache.update(0, key, key).first, key));
}

TEST(StaticKvCache, KeepsItsStorageAndRefusesMoreThanFits) {
  StaticKvCache cache({.num_layers = 1, .batch_size = 2, .num_kv_heads = kHeads, .head_dim = kDim},
                      8, at::TensorOptions().dtype(at::kFloat));
  EXPECT_EQ(cache.max_length(), 8);
  const auto [keys, values] = cache.update(0, random_kv(2, 6), random_kv(2, 6));
  cache.advance(6);
  cache.reorder(at::tensor({1, 0}, at::TensorOptions().dtype(at::kLong)));
  const auto [more_keys, more_values] = cache.update(0, random_kv(2, 2), random_kv(2, 2));
  EXPECT_EQ(more_keys.storage().data(), keys.storage().data());
  cache.advance(2);
  try {
    cache.update(0, random_kv(2, 1), random_kv(2, 1));
    FAIL() << "expected InvalidArgument";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "[nn.kv_cache] cache: expected at most 8 tokens, got 9\n"
                 "hint: make the cache with a larger max_length");
  }
}

TEST(StaticKvCache, CountsPlacesInTensorsThatKeepTheirPlace) {
  StaticKvCache cache({.num_layers = 2, .batch_size = 2, .num_kv_heads = kHeads, .head_dim = kDim},
                      6, at::TensorOptions().dtype(at::kFloat));
  EXPECT_EQ(cache.device_steps(), nullptr);
  for (const int64_t layer : {0, 1}) {
    cache.update(layer, random_kv(2, 3), random_kv(2, 3));
  }
  cache.advance(3);
  const at::Tensor mask = at::tensor({1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1}, at::kLong).view({2, 6});
  cache.count_on_device(mask, {}, {});
  const DeviceSteps& steps = *cache.device_steps();
  EXPECT_TRUE(at::equal(steps.place.lengths, at::tensor({3, 3}, at::kInt)));
  EXPECT_TRUE(at::equal(steps.place.positions, at::tensor({2, 0}, at::kInt)))
      << "of the newest token, padding not counted";
  EXPECT_TRUE(at::equal(steps.mask.isinf().view({2, 6}), mask.eq(0)));
  EXPECT_EQ(cache.storage(1).first.narrow(2, 3, 3).abs().sum().item<float>(), 0.0F);
  const void* place = steps.place.positions.data_ptr();
  cache.reorder(at::tensor({1, 0}, at::kLong));
  EXPECT_TRUE(at::equal(steps.place.positions, at::tensor({0, 2}, at::kInt)));
  EXPECT_TRUE(at::equal(steps.mask.isinf().view({2, 6}), mask.eq(0).flip({0})));
  EXPECT_EQ(steps.place.positions.data_ptr(), place);
  EXPECT_THROW(cache.reorder(at::tensor({1}, at::kLong)), InvalidArgument);
  cache.advance(3);
  EXPECT_THROW(cache.advance(1), InvalidArgument);
  cache.reset();
  EXPECT_EQ(cache.device_steps(), nullptr);
}

}  // namespace
}  // namespace graft::nn

// Attention over caches on the CPU, and new tokens that join them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/attention/attention_cache_test.h"

namespace graft_kernels::attention {
namespace {

using testing::is_same_bits;

using CpuDecode = CacheTest<at::kCPU>;

TEST_P(CpuDecode, IsRightForOddLengthsAndSizes) {
  for (const int64_t head_dim : {7, 64, 80, 256}) {
    for (const int64_t keys : {1, 7, 127, 129, 1000}) {
      expect_right({2, 1, keys, 6, 2, head_dim});
      expect_right({1, std::min<int64_t>(keys, 5), keys, 4, 4, head_dim});
    }
  }
}

TEST_P(CpuDecode, TakesLengthsWindowsSinksCapsAndMasks) {
  const at::Tensor lengths = ints({0, 1, 3, 130, 300});
  for (const int64_t queries : {1, 4}) {
    expect_right({5, queries, 300, 8, 2, 64}, {.lengths = lengths});
    expect_right({5, queries, 300, 8, 2, 64}, {.lengths = lengths, .window = 33});
    expect_right({5, queries, 300, 8, 2, 64}, {.lengths = lengths, .causal = false});
    expect_right({5, queries, 300, 8, 2, 64},
                 {.lengths = lengths, .sinks = random({8}), .softcap = 3.0});
    expect_right({5, queries, 300, 8, 2, 64}, {.sinks = random({8}).to(at::kFloat), .window = 70});
    for (const int64_t heads : {1, 8}) {
      at::Tensor mask = at::randn({5, heads, queries, 300}).to(GetParam());
      mask.masked_fill_(at::rand(mask.sizes()) < 0.3, -kInfinity);
      expect_right({5, queries, 300, 8, 2, 64}, {.lengths = lengths, .mask = mask, .window = 80});
      expect_right({5, queries, 300, 8, 2, 64}, {.mask = mask.to(at::kFloat), .causal = false});
    }
  }
}

TEST_P(CpuDecode, ReadsPagesInAnyOrderAndNoneThatIsNotInUse) {
  constexpr int64_t kBatch = 3, kHeads = 2, kPages = 40, kTable = 10, kPage = 12;
  at::Tensor keys = random({kPages, kHeads, kPage, 64}),
             values = random({kPages, kHeads, kPage, 64});
  const at::Tensor order = at::randperm(kPages).narrow(0, 0, kBatch * kTable);
  at::Tensor table = order.view({kBatch, kTable}).to(at::kInt).clone();
  const auto gathered = [&](const at::Tensor& pages) {
    return pages.index_select(0, order)
        .view({kBatch, kTable, kHeads, kPage, 64})
        .permute({0, 2, 1, 3, 4})
        .reshape({kBatch, kHeads, kTable * kPage, 64});
  };
  const at::Tensor query = random({kBatch, 2, 6, 64});
  const at::Tensor key = gathered(keys), value = gathered(values);
  // The 60 keys of the second entry end with its fifth page.
  for (int64_t page = 5; page < kTable; ++page) {
    keys[table[1][page].item<int64_t>()].fill_(std::numeric_limits<double>::quiet_NaN());
  }
  table.narrow(1, 5, 5)[1].fill_(-7);
  for (const int64_t window : {0, 20}) {
    Cache cache{.lengths = ints({0, 60, 120}), .window = window};
    cache.table = table;
    cache.lse = at::full({kBatch, 6, 2}, 777.0, at::kFloat);
    expect_close(decode(query, keys, values, cache), query, key, value, cache, "pages");
  }
}

TEST_P(CpuDecode, RefusesAPageThatTheCacheDoesNotHave) {
  const at::Tensor query = random({1, 1, 2, 16}), pages = random({4, 2, 8, 16});
  for (const int32_t page : {4, -1}) {
    Cache cache{.lengths = ints({9})};
    cache.table = ints({1, page}).view({1, 2});
    try {
      decode(query, pages, pages, cache);
      FAIL() << "accepted page " << page;
    } catch (const std::exception& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("block_table: expected pages of 0 to 3, got " +
                                                     std::to_string(page)));
    }
  }
}

TEST_P(CpuDecode, NothingBeyondTheLengthLeaks) {
  const at::Tensor query = random({2, 2, 4, 32}), lengths = ints({37, 64});
  at::Tensor key = random({2, 2, 90, 32}), value = random({2, 2, 90, 32});
  const at::Tensor expected = decode(query, key, value, {.lengths = lengths});
  for (at::Tensor* cache : {&key, &value}) {
    (*cache)[0].slice(1, 37).fill_(std::numeric_limits<double>::quiet_NaN());
    (*cache)[1].slice(1, 64).fill_(kInfinity);
  }
  EXPECT_TRUE(is_same_bits(decode(query, key, value, {.lengths = lengths}), expected));
}

TEST_P(CpuDecode, AppendsTurnsAndAttendsInOneCall) {
  for (const int64_t head_dim : {6, 64, 96}) {
    for (const int64_t queries : {1, 3, 16}) {
      for (const int64_t page : {0, 12}) {
        for (const bool interleaved : {false, true}) {
          expect_append({head_dim, queries, page, interleaved, /*float_tables=*/!interleaved,
                         /*positions=*/queries == 3});
        }
      }
    }
  }
}

TEST_P(CpuDecode, GivesTheSameBitsOnAnyNumberOfThreads) {
  const at::Tensor query = random({4, 2, 8, 64}), key = random({4, 4, 700, 64});
  const Cache cache{.lengths = ints({700, 1, 350, 699})};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = decode(query, key, key, cache);
  at::set_num_threads(3);
  EXPECT_TRUE(is_same_bits(decode(query, key, key, cache), one));
  at::set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CpuDecode, ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::attention

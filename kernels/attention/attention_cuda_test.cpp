// Attention on CUDA against float64, and over caches whose lengths and pages lie on the device.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/attention/attention_cache_test.h"

namespace graft_kernels::attention {
namespace {

using testing::is_same_bits;

using CudaAttention = CacheTest<at::kCUDA>;

TEST_P(CudaAttention, IsRightForEveryHeadSizeAndNumberOfKeys) {
  for (const int64_t head_dim : {1, 7, 16, 40, 64, 80, 96, 128, 192, 256}) {
    for (const int64_t keys : {1, 15, 17, 64, 65, 257, 1000}) {
      if (testing::is_small_run() && keys > 300) {
        continue;
      }
      expect_right({2, 1, keys, 6, 2, head_dim});
    }
  }
}

TEST_P(CudaAttention, IsRightForOneToManyQueriesAndAnySplits) {
  for (const int64_t queries : {1, 2, 3, 5, 8, 16, 37}) {
    for (const auto& [heads, key_heads] : {std::pair<int64_t, int64_t>{4, 4}, {9, 3}, {8, 1}}) {
      for (const int64_t splits : {0, 1, 3, 128}) {
        expect_right({1, queries, 300, heads, key_heads, 64}, {.splits = splits});
      }
      expect_right({1, queries, 300, heads, key_heads, 128}, {.causal = false});
      expect_right({2, queries, 300, heads, key_heads, 64}, {.window = 50});
    }
    if (testing::is_small_run()) {
      break;
    }
  }
}

TEST_P(CudaAttention, ReadsLengthsOnTheDevice) {
  const at::Tensor lengths = ints({0, 1, 3, 130, 300});
  for (const int64_t queries : {1, 4}) {
    for (const int64_t splits : {0, 1, 7}) {
      expect_right({5, queries, 300, 8, 2, 128}, {.lengths = lengths, .splits = splits});
      expect_right({5, queries, 300, 8, 2, 64},
                   {.lengths = lengths, .window = 33, .causal = true, .splits = splits});
    }
  }
}

TEST_P(CudaAttention, CapsScoresCountsSinksAndAddsMasks) {
  for (const int64_t splits : {0, 1, 4}) {
    expect_right({2, 3, 170, 4, 2, 64}, {.softcap = 3.0, .splits = splits});
    expect_right({2, 3, 170, 4, 2, 64}, {.sinks = random({4}), .splits = splits});
    expect_right(
        {3, 2, 170, 4, 2, 128},
        {.lengths = ints({0, 1, 170}), .sinks = random({4}).to(at::kFloat), .splits = splits});
    for (const auto& sizes :
         std::vector<std::vector<int64_t>>{{2, 4, 3, 170}, {1, 1, 3, 170}, {2, 1, 1, 170}}) {
      at::Tensor mask = at::randn(sizes).to(GetParam());
      mask.masked_fill_(at::rand(sizes) < 0.3, -kInfinity);
      expect_right({2, 3, 170, 4, 2, 64},
                   {.mask = mask.to(at::kCUDA), .causal = false, .splits = splits});
      expect_right({2, 3, 170, 4, 2, 64},
                   {.mask = mask.to(at::kCUDA, at::kFloat), .softcap = 2.0, .splits = splits});
    }
  }
}

TEST_P(CudaAttention, ReadsPagesInAnyOrder) {
  constexpr int64_t kBatch = 3, kHeads = 2, kPages = 40, kTable = 10;
  for (const int64_t page : {1, 16, 20}) {
    for (const int64_t head_dim : {64, 128, 30}) {
      const at::Tensor keys = random({kPages, kHeads, page, head_dim});
      const at::Tensor values = random({kPages, kHeads, page, head_dim});
      const at::Tensor order = at::randperm(kPages).narrow(0, 0, kBatch * kTable);
      const at::Tensor table = order.view({kBatch, kTable}).to(at::kCUDA, at::kInt);
      const auto gathered = [&](const at::Tensor& pages) {
        return pages.index_select(0, order.to(at::kCUDA))
            .view({kBatch, kTable, kHeads, page, head_dim})
            .permute({0, 2, 1, 3, 4})
            .reshape({kBatch, kHeads, kTable * page, head_dim});
      };
      const int32_t room = static_cast<int32_t>(kTable * page);
      const at::Tensor query = random({kBatch, 2, 6, head_dim});
      for (const int64_t splits : {0, 1, 3}) {
        Cache cache{.lengths = ints({2, room / 2, room}), .splits = splits};
        cache.table = table;
        const at::Tensor ours = decode(query, keys, values, cache);
        expect_close(ours, query, gathered(keys), gathered(values), cache,
                     "page " + std::to_string(page) + " D" + std::to_string(head_dim));
      }
    }
  }
}

TEST_P(CudaAttention, NothingBeyondTheLengthOrHiddenByTheMaskLeaks) {
  const at::Tensor query = random({2, 2, 4, 32});
  at::Tensor key = random({2, 2, 90, 32}), value = random({2, 2, 90, 32});
  const at::Tensor lengths = ints({37, 64});
  const auto run = [&](int64_t splits) {
    return decode(query, key, value, {.lengths = lengths, .splits = splits});
  };
  const at::Tensor expected[2] = {run(1), run(3)};
  at::Tensor mask = at::zeros({2, 1, 1, 90}, query.options());
  mask.slice(-1, 0, 21).fill_(-kInfinity);
  const at::Tensor masked = decode(query, key, value, {.mask = mask});
  for (const double junk : {std::numeric_limits<double>::quiet_NaN(), kInfinity}) {
    at::Tensor k = key.clone(), v = value.clone();
    k[0].slice(1, 37).fill_(junk);
    v[0].slice(1, 37).fill_(junk);
    k[1].slice(1, 64).fill_(junk);
    v[1].slice(1, 64).fill_(junk);
    EXPECT_TRUE(is_same_bits(decode(query, k, v, {.lengths = lengths, .splits = 1}), expected[0]));
    EXPECT_TRUE(is_same_bits(decode(query, k, v, {.lengths = lengths, .splits = 3}), expected[1]));
    k = key.clone();
    v = value.clone();
    k.slice(2, 0, 21).fill_(junk);
    v.slice(2, 0, 21).fill_(junk);
    EXPECT_TRUE(is_same_bits(decode(query, k, v, {.mask = mask}), masked));
  }
  key[0][0][5].fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(run(3)[0].narrow(1, 0, 2).isnan().all().item<bool>());
  EXPECT_FALSE(run(3)[1].isnan().any().item<bool>());
}

TEST_P(CudaAttention, ReadsViewsWhereTheyLie) {
  // A cache laid out [B, T, Hk, D], heads out of a fused projection, and views off 16 bytes.
  for (const int64_t shift : {0, 8, 3}) {
    const at::Tensor keys = random({2, 128, 3, 80}), fused = random({2, 4, 15, 80});
    const at::Tensor query = fused.narrow(2, 2, 9).narrow(3, shift, 64);
    const at::Tensor key = keys.narrow(1, 5, 100).transpose(1, 2).narrow(3, shift, 64);
    const at::Tensor ours = decode(query, key, key, {});
    expect_close(ours, query, key, key, {}, "shift " + std::to_string(shift));
  }
}

TEST_P(CudaAttention, GivesTheSameBitsEveryTimeAlsoFromAGraph) {
#ifdef GRAFT_WITH_CUDA
  const at::Tensor query = random({2, 1, 8, 128}), key = random({2, 2, 3000, 128});
  at::Tensor lengths = ints({3000, 1700}), out = at::empty_like(query);
  const Cache cache{.lengths = lengths};
  const at::Tensor first = decode(query, key, key, cache);
  for (int run = 0; run < (testing::is_small_run() ? 5 : 250); ++run) {
    ASSERT_TRUE(is_same_bits(decode(query, key, key, cache), first)) << run;
  }
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    package()("attention_decode_out", out, c10::IValue(), query, key, key, lengths, c10::IValue(),
              c10::IValue(), c10::IValue(), scale_of(query), 0.0, int64_t{0}, true, int64_t{0});
  });
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(out, first));
  lengths.copy_(ints({5, 2999}));  // a captured graph follows the lengths
  stream.synchronize();
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(out, decode(query, key, key, cache)));
  stream.synchronize();
#endif
}

TEST_P(CudaAttention, ServesTheOpsOfTheCpuToo) {
  const at::Tensor query = random({2, 130, 6, 64}), key = random({2, 2, 140, 64});
  const at::Tensor ours =
      package()("attention", query, key, key, c10::IValue(), scale_of(query), 0.0, true)[0]
          .toTensor();
  expect_close(ours, query, key, key, {}, "attention");
}

TEST_P(CudaAttention, IsRightForWholePrompts) {
  for (const int64_t head_dim : {64, 128}) {
    for (const auto& [queries, keys] : {std::pair<int64_t, int64_t>{64, 64},
                                        {65, 1},
                                        {127, 129},
                                        {128, 128},
                                        {200, 100},
                                        {256, 300},
                                        {300, 1000},
                                        {513, 513},
                                        {700, 901}}) {
      for (const bool causal : {true, false}) {
        expect_right({2, queries, keys, 6, 2, head_dim}, {.causal = causal});
        expect_right({1, queries, keys, 2, 2, head_dim}, {.causal = causal});
        expect_right({2, queries, keys, 4, 1, head_dim}, {.window = 150, .causal = causal});
      }
      if (testing::is_small_run() && queries > 127) {
        break;
      }
    }
  }
}

// What scores are measured against moves at some tiles and stays at others, in either order.
TEST_P(CudaAttention, FollowsScoresThatClimbFromTileToTile) {
  const double most = GetParam() == at::kFloat ? 2.0 : 12.0;
  for (const int64_t head_dim : {64, 128}) {
    for (const double first : {most, 0.1}) {
      const at::Tensor gain = at::linspace(first, most + 0.1 - first, 1100).view({1, 1, -1, 1});
      const at::Tensor key = (at::randn({1, 2, 1100, head_dim}) * gain).to(at::kCUDA, GetParam());
      const at::Tensor query = random({1, 400, 4, head_dim}), value = random(key.sizes());
      for (const bool causal : {true, false}) {
        const Cache cache{.causal = causal};
        expect_close(decode(query, key, value, cache), query, key, value, cache, "climb");
      }
    }
  }
}

// Rows that see none of the tile they begin with, and later only scores whose exponentials are nothing beside one.
TEST_P(CudaAttention, IsRightWhereAllScoresAreFarBelowZero) {
  for (const int64_t head_dim : {64, 128}) {
    const at::Tensor query = random({1, 300, 4, head_dim}) + 4.0,
                     value = random({1, 2, 700, head_dim});
    for (const int64_t keys : {337, 463, 700}) {
      const at::Tensor key = random({1, 2, keys, head_dim}) - 4.0, own = value.narrow(2, 0, keys);
      for (const bool causal : {true, false}) {
        const Cache cache{.causal = causal};
        expect_close(decode(query, key, own, cache), query, key, own, cache, "below zero");
      }
    }
  }
}

TEST_P(CudaAttention, GivesTheSameBitsForAPromptEveryTime) {
  const at::Tensor key = random({2, 2, 900, 128});
  for (const int64_t heads : {8, 6}) {  // blocks in pairs, and alone
    const at::Tensor query = random({2, 700, heads, 128}), first = decode(query, key, key, {});
    for (int run = 0; run < (testing::is_small_run() ? 3 : 100); ++run) {
      ASSERT_TRUE(is_same_bits(decode(query, key, key, {}), first)) << run;
    }
  }
}

TEST_P(CudaAttention, NamesTheArgumentThatIsWrong) {
  const at::Tensor query = random({2, 1, 4, 16}), key = random({2, 2, 5, 16});
  const auto message = [&](const Cache& cache) {
    try {
      decode(query, key, key, cache);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message({.lengths = ints({1})}), HasSubstr("lengths: expected shape [2], got [1]"));
  EXPECT_THAT(message({.lengths = ints({1, 2}).to(at::kLong)}),
              HasSubstr("lengths: expected int32, got"));
  EXPECT_THAT(message({.table = ints({1, 2}).view({2, 1})}),
              HasSubstr("lengths: expected a tensor beside block_table, got none"));
  EXPECT_THAT(message({.sinks = random({3})}), HasSubstr("sinks: expected shape [4], got [3]"));
  EXPECT_THAT(message({.splits = 129}), HasSubstr("splits: expected 0 to 128, got 129"));
  EXPECT_THAT(message({.window = -1}), HasSubstr("window: expected 0 to"));
  EXPECT_THAT(message({.lse = at::empty({2, 4, 2}, query.options().dtype(at::kFloat))}),
              HasSubstr("lse: expected dense, of shape [2, 4, 1], got [2, 4, 2]"));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaAttention,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::attention

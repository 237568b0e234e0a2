// Attention over caches on CUDA where the kernel for Hopper divides, merges, gathers and appends: odd lengths,
// pages of every size, new tokens, graphs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/attention/attention_cache_test.h"

namespace graft_kernels::attention {
namespace {

using testing::is_same_bits;

using CudaDecode = CacheTest<at::kCUDA>;

TEST_P(CudaDecode, IsRightForOddLengthsOfEveryHeadSize) {
  for (const int64_t head_dim : {64, 80, 96, 128, 192, 256}) {
    for (const int64_t keys : {1, 7, 127, 129, 1000, 4097}) {
      if (testing::is_small_run() && (keys > 300 || head_dim % 64 == 0)) {
        continue;
      }
      expect_right({1, 1, keys, 8, 8, head_dim});
      expect_right({2, 1, keys, 8, 2, head_dim});
      expect_right({1, std::min<int64_t>(keys, 5), keys, 8, 1, head_dim});
    }
  }
}

TEST_P(CudaDecode, IsRightForSixteenQueriesOfEveryGroup) {
  for (const int64_t queries : {2, 4, 7, 16}) {
    for (const auto& [heads, key_heads] :
         {std::pair<int64_t, int64_t>{4, 4}, {8, 2}, {16, 2}, {12, 1}}) {
      for (const int64_t head_dim : {64, 128, 256}) {
        expect_right({2, queries, 700, heads, key_heads, head_dim},
                     {.lengths = ints({700, 91}), .window = queries == 7 ? 100 : 0});
        if (testing::is_small_run()) {
          break;
        }
      }
    }
  }
}

TEST_P(CudaDecode, MergesAnyNumberOfParts) {
  for (const int64_t splits : {1, 2, 4, 5, 8, 16, 64}) {
    expect_right({2, 2, 2100, 8, 2, 128}, {.lengths = ints({2100, 65}), .splits = splits});
    expect_right({1, 1, 1300, 4, 1, 64}, {.sinks = random({4}), .softcap = 4.0, .splits = splits});
  }
  // More than meet at a time, of rows in several blocks.
  for (const int64_t splits : {3, 128}) {
    expect_right({1, 16, 1100, 4, 1, 256}, {.splits = splits});
    expect_right({2, 1, 1100, 10, 2, 80}, {.lengths = ints({1100, 700}), .splits = splits});
  }
}

TEST_P(CudaDecode, WorksThroughManyTilesInOneBlock) {
  for (const int64_t head_dim : {64, 128, 192, 256}) {
    expect_right({1, 1, 2500, 8, 2, head_dim}, {.splits = 1});
    if (testing::is_small_run()) {
      continue;
    }
    expect_right({4, 1, 8192, 16, 2, head_dim});
    expect_right({1, 1, 32768, 8, 1, head_dim});  // a cluster's parts, and several clusters
  }
}

TEST_P(CudaDecode, FillsTheDeviceWithManySequencesOfMixedLength) {
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 40; ++i) {
    lengths.push_back(i * 37 % 401);
  }
  expect_right({40, 1, 400, 16, 8, 128}, {.lengths = ints(lengths).clamp_max(400)});
  expect_right({40, 3, 400, 16, 8, 64}, {.lengths = ints(lengths).clamp_max(400)});
}

TEST_P(CudaDecode, TakesPagesOfAnySizeAndNeverOneThatIsNotInUse) {
  constexpr int64_t kBatch = 3, kHeads = 2;
  for (const int64_t page : {8, 16, 48, 64, 256}) {
    const int64_t rows = 700 / page + 1, pages = kBatch * rows + 5, room = rows * page;
    for (const int64_t head_dim : {80, 128}) {
      at::Tensor keys = random({pages, kHeads, page, head_dim});
      at::Tensor values = random({pages, kHeads, page, head_dim});
      const at::Tensor order = at::randperm(pages).narrow(0, 0, kBatch * rows);
      at::Tensor table = order.view({kBatch, rows}).to(at::kInt).clone();
      const auto gathered = [&](const at::Tensor& from) {
        return from.index_select(0, order.to(at::kCUDA))
            .view({kBatch, rows, kHeads, page, head_dim})
            .permute({0, 2, 1, 3, 4})
            .reshape({kBatch, kHeads, room, head_dim});
      };
      const std::vector<int32_t> lengths{0, 67, 650};
      const at::Tensor query = random({kBatch, 2, 8, head_dim});
      const at::Tensor key = gathered(keys), value = gathered(values);
      // What lies behind the lengths, and pages of no sequence.
      at::Tensor used = at::zeros({pages, page}, at::kBool);
      for (int64_t b = 0; b < kBatch; ++b) {
        for (int64_t at = 0; at < rows * page; ++at) {
          if (at < lengths[b]) {
            used[table[b][at / page].item<int64_t>()][at % page].fill_(true);
          } else if (at % page == 0) {
            table[b][at / page].fill_(-1);
          }
        }
      }
      const at::Tensor unused = used.logical_not().view({pages, 1, page, 1}).to(at::kCUDA);
      keys.masked_fill_(unused, std::numeric_limits<double>::quiet_NaN());
      values.masked_fill_(unused, std::numeric_limits<double>::quiet_NaN());
      for (const int64_t window : {0, 50}) {
        Cache cache{.lengths = ints(lengths), .window = window};
        cache.lse = at::full({kBatch, 8, 2}, 777.0, query.options().dtype(at::kFloat));
        cache.table = table.to(at::kCUDA);
        expect_close(decode(query, keys, values, cache), query, key, value, cache,
                     "page " + std::to_string(page) + " D" + std::to_string(head_dim) + " window " +
                         std::to_string(window));
      }
    }
  }
}

TEST_P(CudaDecode, DividesLongCachesInSmallPages) {
  constexpr int64_t kHeads = 8, kSize = 64;
  const int64_t room = testing::is_small_run() ? 4096 : 16384;
  for (const int64_t page : {8, 16}) {
    const int64_t pages = room / page;
    const at::Tensor query = random({1, 1, kHeads, kSize});
    const at::Tensor keys = random({pages, kHeads, page, kSize});
    const at::Tensor values = random({pages, kHeads, page, kSize});
    const at::Tensor order = at::randperm(pages);
    const auto gathered = [&](const at::Tensor& from) {
      return from.index_select(0, order.to(at::kCUDA))
          .transpose(0, 1)
          .reshape({1, kHeads, room, kSize});
    };
    const at::Tensor key = gathered(keys), value = gathered(values);
    for (const int64_t length : {room, room / 2 + 5}) {
      Cache cache{.lengths = ints({static_cast<int32_t>(length)})};
      cache.table = order.view({1, pages}).to(at::kInt).to(at::kCUDA);
      expect_close(decode(query, keys, values, cache), query, key, value, cache,
                   "page " + std::to_string(page) + " length " + std::to_string(length));
    }
  }
}

TEST_P(CudaDecode, ReadsPagesBeyondTwoToTheThirtyFirstElement) {
  if (GetParam() != at::kBFloat16 || testing::is_small_run()) {
    return;  // the cache has 4.3 GB: once is enough
  }
  constexpr int64_t kPage = 256, kHeads = 8, kSize = 128;
  constexpr int64_t kPages = (int64_t{1} << 31) / (kPage * kHeads * kSize) + 3;
  const at::Tensor cache =
      at::empty({kPages, kHeads, kPage, kSize}, at::TensorOptions(at::kCUDA).dtype(GetParam()));
  cache.narrow(0, kPages - 2, 2).normal_();
  const at::Tensor query = random({1, 1, 16, kSize});
  Cache arguments{.lengths = ints({300})};
  arguments.table = ints({kPages - 1, kPages - 2}).view({1, 2});
  const at::Tensor keys = at::cat({cache[kPages - 1], cache[kPages - 2]}, 1).unsqueeze(0);
  expect_close(decode(query, cache, cache, arguments), query, keys, keys, arguments, "2^31");
}

TEST_P(CudaDecode, FollowsEveryLengthFromOneGraph) {
#ifdef GRAFT_WITH_CUDA
  const at::Tensor query = random({2, 1, 8, 128}), key = random({2, 2, 5000, 128});
  at::Tensor lengths = ints({1, 1}), out = at::empty_like(query);
  decode(query, key, key, {.lengths = lengths});
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    package()("attention_decode_out", out, c10::IValue(), query, key, key, lengths, c10::IValue(),
              c10::IValue(), c10::IValue(), scale_of(query), 0.0, int64_t{0}, true, int64_t{0});
  });
  for (const auto& [first, second] : {std::pair<int32_t, int32_t>{1, 0},
                                      {7, 127},
                                      {129, 1000},
                                      {4097, 63},
                                      {5000, 64},
                                      {9999, -3}}) {
    lengths.copy_(ints({first, second}));
    stream.synchronize();
    graph.launch();
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(out, decode(query, key, key, {.lengths = lengths}))) << first;
    stream.synchronize();
  }
#endif
}

TEST_P(CudaDecode, PartsMeetInEveryReplayOfOneGraph) {
#ifdef GRAFT_WITH_CUDA
  // One key head: several clusters, whose last to come merges; and parts that are no cluster.
  const at::Tensor query = random({1, 1, 8, 128}), key = random({1, 1, 20000, 128});
  at::Tensor lengths = ints({1}), chosen = at::empty_like(query), five = at::empty_like(query);
  const auto both = [&] {
    for (const auto& [out, splits] : {std::pair<at::Tensor, int64_t>{chosen, 0}, {five, 5}}) {
      package()("attention_decode_out", out, c10::IValue(), query, key, key, lengths, c10::IValue(),
                c10::IValue(), c10::IValue(), scale_of(query), 0.0, int64_t{0}, true, splits);
    }
  };
  both();
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, both);
  for (const int32_t length : {20000, 63, 1, 0, 4097, 19999, 20000}) {
    lengths.fill_(length);
    chosen.fill_(777.0);
    five.fill_(777.0);
    for (int replay = 0; replay < 3; ++replay) {
      graph.launch();
    }
    stream.synchronize();
    const Cache cache{.lengths = lengths};
    expect_close(chosen, query, key, key, cache, "length " + std::to_string(length));
    expect_close(five, query, key, key, cache, "five parts, length " + std::to_string(length));
    EXPECT_TRUE(is_same_bits(chosen, decode(query, key, key, cache))) << length;
    stream.synchronize();
  }
#endif
}

TEST_P(CudaDecode, GivesTheSameBitsInEveryOfManyRuns) {
  const at::Tensor query = random({3, 4, 8, 128}), key = random({3, 2, 2500, 128});
  const Cache cache{.lengths = ints({2500, 1203, 64})};
  const at::Tensor first = decode(query, key, key, cache);
  for (int run = 0; run < (testing::is_small_run() ? 3 : 250); ++run) {
    ASSERT_TRUE(is_same_bits(decode(query, key, key, cache), first)) << run;
  }
}

TEST_P(CudaDecode, AppendsTurnsAndAttendsInOneCall) {
  for (const int64_t head_dim : {64, 96, 128, 256}) {
    for (const int64_t queries : {1, 3, 16}) {
      for (const int64_t page : {0, 16, 12}) {
        for (const bool interleaved : {false, true}) {
          expect_append({head_dim, queries, page, interleaved, /*float_tables=*/!interleaved,
                         /*positions=*/queries == 3});
        }
        if (testing::is_small_run()) {
          break;
        }
      }
    }
  }
}

TEST_P(CudaDecode, AppendsStepAfterStepFromOneGraph) {
#ifdef GRAFT_WITH_CUDA
  constexpr int64_t kRoom = 200, kSteps = 70;
  const at::Tensor all = random({1, kSteps, 4, 64});
  at::Tensor query = random({1, 1, 8, 64}), fresh = all.narrow(1, 0, 1).clone();
  at::Tensor cache =
      at::full({1, 4, kRoom, 64}, std::numeric_limits<double>::quiet_NaN(), query.options());
  at::Tensor lengths = ints({1}), out = at::empty_like(query);
  const testing::CurrentStream stream;
  const auto step = [&] {
    package()("attention_append_out", out, c10::IValue(), cache, cache, query, fresh, fresh,
              c10::IValue(), c10::IValue(), lengths, c10::IValue(), c10::IValue(), c10::IValue(),
              scale_of(query), 0.0, int64_t{0}, true, false, int64_t{0});
  };
  step();
  stream.synchronize();
  const testing::CapturedGraph graph(stream, step);
  for (int64_t at = 0; at < kSteps; ++at) {
    fresh.copy_(all.narrow(1, at, 1));
    lengths.fill_(static_cast<int32_t>(at + 1));
    graph.launch();
    stream.synchronize();
    const at::Tensor keys = all.narrow(1, 0, at + 1).transpose(1, 2);
    expect_close(out, query, keys, keys, {}, "step " + std::to_string(at));
  }
#endif
}

TEST_P(CudaDecode, NamesTheArgumentOfAnAppendThatIsWrong) {
  using ::testing::HasSubstr;
  const at::Tensor query = random({2, 1, 4, 16}), cache = random({2, 2, 8, 16});
  const at::Tensor fresh = random({2, 1, 2, 16}), table = random({8, 16});
  const auto message = [&](const at::Tensor& key, const at::Tensor& cos, const at::Tensor& sin,
                           const at::Tensor& positions) {
    at::Tensor out = at::empty_like(query);
    try {
      package()("attention_append_out", out, c10::IValue(), cache, cache, query, key, fresh,
                optional(cos), optional(sin), ints({1, 2}), optional(positions), c10::IValue(),
                c10::IValue(), 0.25, 0.0, int64_t{0}, true, false, int64_t{0});
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(message(random({2, 1, 4, 16}), {}, {}, {}),
              HasSubstr("new_key: expected shape [2, 1, 2, 16], got [2, 1, 4, 16]"));
  EXPECT_THAT(message(fresh, table, {}, {}),
              HasSubstr("sin: expected tables of both, or of none, got none"));
  EXPECT_THAT(message(fresh, random({8, 18}), table, {}),
              HasSubstr("cos: expected shape [positions"));
  EXPECT_THAT(message(fresh, table, random({9, 16}), {}), HasSubstr("sin: expected"));
  EXPECT_THAT(message(fresh, table, table, ints({1})),
              HasSubstr("positions: expected shape [2], got [1]"));
  EXPECT_EQ(message(fresh, table, table, ints({1, 2})), "accepted");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaDecode,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::attention

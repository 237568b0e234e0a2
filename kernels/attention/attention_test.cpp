// Attention against float64 and ATen's own on the CPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::attention {
namespace {

using testing::is_same_bits;
using testing::Package;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t batch = 1, queries = 1, keys = 1, heads = 1, key_heads = 1, head_dim = 64;
};

struct Options {
  at::Tensor mask;
  double softcap = 0.0;
  bool causal = false;
};

class Attention : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(11); }
  static const Package& package() { return Package::get("attention", testing::kCpuVariant); }

  at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes).to(GetParam()); }

  static at::Tensor apply(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          double scale, const Options& options = {}) {
    return package()("attention", query, key, value,
                     options.mask.defined() ? c10::IValue(options.mask) : c10::IValue(), scale,
                     options.softcap, options.causal)[0]
        .toTensor();
  }

  // The formula, in the dtype of its arguments; scores and softmax in float32 or wider.
  static at::Tensor formula(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            double scale, const Options& options) {
    const int64_t groups = query.size(2) / key.size(1), keys = key.size(2), queries = query.size(1);
    const auto wide = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor scores =
        at::matmul(query.transpose(1, 2), key.repeat_interleave(groups, 1).transpose(2, 3)) * scale;
    if (options.softcap > 0.0) {
      scores = at::tanh(scores / options.softcap) * options.softcap;
    }
    scores = scores.to(wide);
    if (options.mask.defined()) {
      scores = scores + options.mask.to(wide);
    }
    if (options.causal) {
      const at::Tensor last = at::arange(queries).unsqueeze(1) + (keys - queries);
      scores = scores.masked_fill(at::arange(keys).unsqueeze(0) > last, -kInfinity);
    }
    const at::Tensor weights = at::nan_to_num(at::softmax(scores, -1), 0.0);
    return at::matmul(weights.to(query.scalar_type()), value.repeat_interleave(groups, 1))
        .transpose(1, 2);
  }

  void expect_right(const Shape& s, const Options& options = {}) {
    const at::Tensor query = random({s.batch, s.queries, s.heads, s.head_dim});
    const at::Tensor key = random({s.batch, s.key_heads, s.keys, s.head_dim});
    expect_right(query, key, random(key.sizes()), options);
  }

  void expect_right(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const Options& options = {}) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(query.size(3)));
    const at::Tensor ours = apply(query, key, value, scale, options);
    ASSERT_EQ(ours.sizes(), query.sizes());
    ASSERT_EQ(ours.scalar_type(), GetParam());
    if (ours.numel() == 0) {
      return;
    }
    const at::Tensor exact =
        formula(query.to(at::kDouble), key.to(at::kDouble), value.to(at::kDouble), scale, options);
    const at::Tensor theirs = formula(query, key, value, scale, options);
    const auto distance = [&](const at::Tensor& x) {
      return (x.to(at::kDouble) - exact).abs().max().item<double>();
    };
    // Half a unit of the result's rounding; in float32, what rounding may do to a sum of these
    // products whatever its order.
    const double floor =
        GetParam() == at::kFloat
            ? 0x1p-24 * formula(query.to(at::kDouble), key.to(at::kDouble),
                                value.to(at::kDouble).abs(), scale, options)
                            .max()
                            .item<double>()
            : (GetParam() == at::kHalf ? 0x1p-12 : 0x1p-9) * exact.abs().max().item<double>();
    EXPECT_LE(distance(ours), 2 * distance(theirs) + floor)
        << "query " << query.sizes() << ", key " << key.sizes();
  }
};

TEST_P(Attention, IsRightForEveryHeadSizeAndNumberOfKeys) {
  for (const int64_t head_dim : {1, 7, 16, 64, 80, 96, 128, 192, 256}) {
    for (const int64_t keys : {1, 7, 31, 32, 33, 129, 257, 1000}) {
      expect_right({2, 1, keys, 6, 2, head_dim});
    }
  }
}

TEST_P(Attention, IsRightForManyQueriesAndSharedHeads) {
  for (const int64_t queries : {1, 2, 5, 16, 17, 130}) {
    for (const auto& [heads, key_heads] : {std::pair<int64_t, int64_t>{4, 4}, {9, 3}, {8, 1}}) {
      expect_right({1, queries, 300, heads, key_heads, 64});
      expect_right({1, queries, 300, heads, key_heads, 64}, {{}, 0.0, /*causal=*/true});
    }
  }
  expect_right({1, 40, 40, 2, 2, 32}, {{}, 0.0, /*causal=*/true});
}

TEST_P(Attention, CapsScoresAndAddsMasksOfEveryShape) {
  expect_right({2, 3, 70, 4, 2, 64}, {{}, 30.0, false});
  for (const auto dtype : {GetParam(), at::kFloat}) {
    for (const auto& sizes :
         std::vector<std::vector<int64_t>>{{2, 4, 3, 70}, {1, 1, 3, 70}, {2, 1, 1, 70}}) {
      at::Tensor mask = at::randn(sizes).to(dtype);
      mask.masked_fill_(at::rand(sizes) < 0.3, -kInfinity);
      expect_right({2, 3, 70, 4, 2, 64}, {mask, 0.0, false});
      expect_right({2, 3, 70, 4, 2, 64}, {mask, 20.0, true});
    }
  }
}

TEST_P(Attention, AQueryThatSeesNothingGivesZeros) {
  const at::Tensor query = random({1, 2, 2, 16}), key = random({1, 2, 40, 16});
  at::Tensor mask = at::zeros({1, 1, 2, 40});
  mask.select(2, 0).fill_(-kInfinity);
  const at::Tensor out = apply(query, key, key, 1.0, {mask});
  EXPECT_EQ(out.select(1, 0).abs().max().item<double>(), 0.0);
  EXPECT_GT(out.select(1, 1).abs().max().item<double>(), 0.0);
  // Three queries, two keys, causal: the first query comes before every key.
  const at::Tensor causal =
      apply(random({1, 3, 2, 16}), key.narrow(2, 0, 2), key.narrow(2, 0, 2), 1.0, {{}, 0.0, true});
  EXPECT_EQ(causal.select(1, 0).abs().max().item<double>(), 0.0);
  EXPECT_EQ(apply(query, key.narrow(2, 0, 0), key.narrow(2, 0, 0), 1.0).abs().max().item<double>(),
            0.0);
  EXPECT_EQ(apply(random({0, 1, 2, 16}), random({0, 2, 3, 16}), random({0, 2, 3, 16}), 1.0).numel(),
            0);
}

TEST_P(Attention, NanInPaddingNeverLeaksAndNanInSightAlwaysShows) {
  const at::Tensor query = random({2, 1, 4, 32});
  at::Tensor key = random({2, 2, 50, 32}), value = random({2, 2, 50, 32});
  at::Tensor mask = at::zeros({2, 1, 1, 50});
  mask.slice(-1, 0, 37).fill_(-kInfinity);
  const at::Tensor expected = apply(query, key, value, 1.0, {mask});
  key.slice(2, 0, 37).fill_(std::numeric_limits<double>::quiet_NaN());
  value.slice(2, 0, 37).fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(is_same_bits(apply(query, key, value, 1.0, {mask}), expected));
  EXPECT_TRUE(apply(query, key, value, 1.0).isnan().all().item<bool>());
  at::Tensor late = random({2, 2, 50, 32});
  late[0][0][49].fill_(std::numeric_limits<double>::quiet_NaN());
  const at::Tensor out = apply(query, late, random({2, 2, 50, 32}), 1.0);
  EXPECT_TRUE(out[0][0].narrow(0, 0, 2).isnan().all().item<bool>());
  EXPECT_FALSE(out[1].isnan().any().item<bool>());
}

TEST_P(Attention, LargeScoresDoNotOverflow) {
  const at::Tensor query = random({1, 1, 2, 64}) * 100, key = random({1, 2, 600, 64}) * 100;
  const at::Tensor value = random({1, 2, 600, 64});
  EXPECT_TRUE(apply(query, key, value, 1.0).isfinite().all().item<bool>());
}

TEST_P(Attention, FollowsScoresThatGrowFromKeyToKey) {
  for (const int64_t queries : {1, 3, 40}) {
    for (const double most : {3.0, 30.0}) {
      // Keys along the queries, longer and longer.
      const at::Tensor query = at::ones({1, queries, 2, 64}).to(GetParam());
      const at::Tensor lengths = at::linspace(-most, most, 700).view({1, 1, 700, 1}) / 8;
      const at::Tensor key = (lengths + 0.01 * at::randn({1, 2, 700, 64})).to(GetParam());
      expect_right(query, key, random(key.sizes()));
      expect_right(query, key.flip(2), random(key.sizes()));
    }
  }
}

TEST_P(Attention, AnInfiniteValueStaysInItsColumn) {
  for (const int64_t queries : {1, 3, 40}) {
    const at::Tensor query = random({1, queries, 4, 96}), key = random({1, 1, 150, 96});
    at::Tensor value = random({1, 1, 150, 96});
    const at::Tensor expected = apply(query, key, value, 0.1);
    for (const int64_t column : {0, 37, 95}) {
      at::Tensor infinite = value.clone();
      infinite.select(3, column).select(2, 70).fill_(kInfinity);
      const at::Tensor out = apply(query, key, infinite, 0.1);
      EXPECT_TRUE((out.select(3, column) == kInfinity).all().item<bool>());
      const at::Tensor others = at::cat({out.narrow(3, 0, column), out.slice(3, column + 1)}, 3);
      const at::Tensor before =
          at::cat({expected.narrow(3, 0, column), expected.slice(3, column + 1)}, 3);
      EXPECT_LE((others - before).abs().max().item<double>(),
                GetParam() == at::kFloat ? 1e-5 : 0.02);
    }
  }
}

TEST_P(Attention, ReadsViewsWhereTheyLie) {
  // A cache with room, and heads out of a fused projection.
  const at::Tensor keys = random({2, 3, 128, 64}), values = random({2, 3, 128, 64});
  const at::Tensor fused = random({2, 4, 15, 64});
  const at::Tensor query = fused.narrow(2, 2, 9), key = keys.narrow(2, 5, 100),
                   value = values.narrow(2, 5, 100);
  const at::Tensor expected =
      apply(query.contiguous(), key.contiguous(), value.contiguous(), 0.125, {{}, 0.0, true});
  EXPECT_TRUE(is_same_bits(apply(query, key, value, 0.125, {{}, 0.0, true}), expected));
  at::Tensor out = at::empty({2, 9, 4, 64}, query.options()).transpose(1, 2);
  package()("attention_out", out, query, key, value, c10::IValue(), 0.125, 0.0, true);
  EXPECT_TRUE(is_same_bits(out.contiguous(), expected));
}

TEST_P(Attention, GivesTheSameBitsEveryTimeAndOnAnyNumberOfThreads) {
  const at::Tensor query = random({1, 1, 9, 64}), key = random({1, 3, 3000, 64});
  const at::Tensor first = apply(query, key, key, 0.125);
  const int threads = at::get_num_threads();
  for (int run = 0; run < 250; ++run) {
    at::set_num_threads(1 + run % 3);
    ASSERT_TRUE(is_same_bits(apply(query, key, key, 0.125), first)) << run;
  }
  at::set_num_threads(threads);
}

TEST_P(Attention, IsRightForPromptsOfOddLengthsAndEveryHeadSize) {
  for (const int64_t head_dim : {1, 7, 64, 80, 96, 128, 192, 256}) {
    for (const int64_t length : {17, 31, 33, 127, 129, 257}) {
      for (const bool causal : {false, true}) {
        expect_right({1, length, length, 4, 2, head_dim}, {{}, 0.0, causal});
      }
    }
  }
  expect_right({1, 1000, 1000, 2, 1, 64}, {{}, 0.0, /*causal=*/true});
  expect_right({1, 33, 4097, 2, 2, 128}, {{}, 0.0, /*causal=*/true});
  if (!testing::is_small_run()) {
    expect_right({1, 4097, 4097, 1, 1, 64}, {{}, 0.0, /*causal=*/true});
  }
}

TEST_P(Attention, CapsScoresOfPromptsAndAddsMasks) {
  for (const auto dtype : {GetParam(), at::kFloat}) {
    for (const auto& sizes :
         std::vector<std::vector<int64_t>>{{2, 4, 45, 150}, {1, 1, 45, 150}, {2, 1, 1, 150}}) {
      at::Tensor mask = at::randn(sizes).to(dtype);
      mask.masked_fill_(at::rand(sizes) < 0.3, -kInfinity);
      expect_right({2, 45, 150, 4, 2, 64}, {mask, 0.0, false});
      expect_right({2, 45, 150, 4, 2, 80}, {mask, 20.0, true});
    }
  }
}

TEST_P(Attention, OfAPromptOnlyWhatSeesNanBecomesNan) {
  constexpr int64_t kLength = 150, kPadding = 37, kLate = 140;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor query = random({2, kLength, 4, 64});
  at::Tensor key = random({2, 2, kLength, 64}), value = random({2, 2, kLength, 64});
  at::Tensor mask = at::zeros({2, 1, 1, kLength});
  mask.slice(-1, 0, kPadding).fill_(-kInfinity);
  const Options options{mask, 0.0, /*causal=*/true};
  const at::Tensor expected = apply(query, key, value, 0.125, options);
  EXPECT_EQ(expected.slice(1, 0, kPadding).abs().max().item<double>(), 0.0);  // they see nothing
  key.slice(2, 0, kPadding).fill_(nan);
  value.slice(2, 0, kPadding).fill_(kInfinity);
  EXPECT_TRUE(is_same_bits(apply(query, key, value, 0.125, options), expected));
  // A value that rows from its own on see: within one block of rows some do and some do not.
  value.select(2, kLate).fill_(nan);
  const at::Tensor out = apply(query, key, value, 0.125, options);
  EXPECT_TRUE(out.slice(1, kLate).isnan().all().item<bool>());
  EXPECT_FALSE(out.slice(1, 0, kLate).isnan().any().item<bool>());
  EXPECT_LE((out.slice(1, 0, kLate) - expected.slice(1, 0, kLate)).abs().max().item<double>(),
            GetParam() == at::kFloat ? 1e-5 : 0.02);
}

TEST_P(Attention, ReadsPromptsWhereTheyLie) {
  const at::Tensor keys = random({2, 3, 128, 64}), values = random({2, 3, 128, 64});
  const at::Tensor fused = random({2, 70, 15, 64});
  const at::Tensor query = fused.narrow(2, 2, 9), key = keys.narrow(2, 5, 100),
                   value = values.narrow(2, 5, 100);
  const at::Tensor expected =
      apply(query.contiguous(), key.contiguous(), value.contiguous(), 0.125, {{}, 0.0, true});
  EXPECT_TRUE(is_same_bits(apply(query, key, value, 0.125, {{}, 0.0, true}), expected));
  at::Tensor out = at::empty({2, 9, 70, 64}, query.options()).transpose(1, 2);
  package()("attention_out", out, query, key, value, c10::IValue(), 0.125, 0.0, true);
  EXPECT_TRUE(is_same_bits(out.contiguous(), expected));
}

TEST_P(Attention, APromptGivesTheSameBitsEveryTimeAndOnAnyNumberOfThreads) {
  const at::Tensor query = random({1, 300, 6, 64}), key = random({1, 3, 300, 64});
  const at::Tensor first = apply(query, key, key, 0.125, {{}, 0.0, true});
  const int threads = at::get_num_threads();
  for (int run = 0; run < 250; ++run) {
    at::set_num_threads(1 + run % 3);
    ASSERT_TRUE(is_same_bits(apply(query, key, key, 0.125, {{}, 0.0, true}), first)) << run;
  }
  at::set_num_threads(threads);
}

TEST_P(Attention, NamesTheArgumentThatIsWrong) {
  const auto message = [&](const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const Options& options = {}) {
    try {
      apply(query, key, value, 1.0, options);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  using ::testing::HasSubstr;
  const at::Tensor query = random({2, 1, 4, 16}), key = random({2, 2, 5, 16});
  EXPECT_THAT(message(query[0], key, key), HasSubstr("[attention] query: expected shape [batch"));
  EXPECT_THAT(message(query, random({2, 3, 5, 16}), random({2, 3, 5, 16})),
              HasSubstr("[attention] key: expected a number of heads that divides 4, got 3"));
  EXPECT_THAT(message(query, random({1, 2, 5, 16}), random({1, 2, 5, 16})),
              HasSubstr("[attention] key: expected batch and head_dim of query"));
  EXPECT_THAT(message(query, key, random({2, 2, 6, 16})), HasSubstr("[attention] value: expected"));
  EXPECT_THAT(message(query, key, key, {at::zeros({1, 1, 1, 4})}),
              HasSubstr("[attention] mask: expected shape [1 or 2, 1 or 4, 1 or 1, 5]"));
  EXPECT_THAT(message(random({1, 1, 1, 257}), random({1, 1, 2, 257}), random({1, 1, 2, 257})),
              HasSubstr("[attention] query: expected head_dim of at most 256, got 257"));
  EXPECT_THAT(message(query.to(at::kDouble), key, key), HasSubstr("[attention] query: expected"));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Attention, ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::attention

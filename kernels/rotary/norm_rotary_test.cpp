// RMSNorm of heads and their rotation in one launch: against float64, and against the package's own ops one after
// another; one suite for all devices and dtypes.

#include "kernels/rotary/norm_rotary_test.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft_kernels::rotary {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

constexpr double kEps = 1e-6;
constexpr int64_t kSameOrderBytes = 128 * 16;

// Of the largest value, in float32.
double half_unit(const at::Tensor& exact) {
  return exact.numel() == 0 ? 0.0 : 0x1p-24 * exact.abs().max().item<double>();
}

class NormRotary : public testing::OnEachDevice {
 protected:
  Both random_tables(int64_t batch, int64_t length, int64_t rotary_dim) const {
    return {random({batch, length, rotary_dim}), random({batch, length, rotary_dim})};
  }
  const Package& package() const { return Package::for_device("rotary", GetParam().device); }
  Both run(const Both& heads, const Both& weights, const Both& tables, int64_t variant = 0,
           bool interleaved = false, double eps = kEps) const {
    const auto out =
        package()("norm_rotary", heads.first, heads.second, weights.first, weights.second,
                  tables.first, tables.second, eps, variant, interleaved);
    return {out.at(0).toTensor(), out.at(1).toTensor()};
  }
  // The norm by the package rms-norm, the rotation by this one.
  Both one_after_another(const Both& heads, const Both& weights, const Both& tables,
                         int64_t variant, bool interleaved) const {
    const Both normed = normed_by_package(GetParam().device, heads, weights, kEps, variant);
    const auto out = package()("rotary", normed.first, normed.second, tables.first, tables.second,
                               interleaved, false);
    return {out.at(0).toTensor(), out.at(1).toTensor()};
  }
  void expect_bits(const Shape& s, int64_t variant, bool interleaved, const Both& tables,
                   const Both& weights) const {
    if (GetParam().device == at::kCUDA &&
        s.head_dim * c10::elementSize(GetParam().dtype) > kSameOrderBytes) {
      return;  // rms_norm shares longer rows among more threads
    }
    const Both heads{random({s.batch, s.length, s.query_heads, s.head_dim}),
                     random({s.batch, s.length, s.key_heads, s.head_dim})};
    const Both ours = run(heads, weights, tables, variant, interleaved),
               theirs = one_after_another(heads, weights, tables, variant, interleaved);
    EXPECT_TRUE(is_same_bits(ours.first, theirs.first))
        << heads.first.sizes() << " rotary " << s.rotary_dim << " variant " << variant
        << " interleaved " << interleaved;
    EXPECT_TRUE(is_same_bits(ours.second, theirs.second)) << heads.second.sizes();
  }
};

TEST_P(NormRotary, HasTheBitsOfNormAndRotationOneAfterAnother) {
  for (const Shape& s : shapes()) {
    for (const bool interleaved : {false, true}) {
      for (int64_t variant = 0; variant < 4; ++variant) {
        const Both weights{random({s.head_dim}), random({s.head_dim})};
        const int64_t table_batch = variant % 2 == 0 ? 1 : s.batch;
        expect_bits(s, variant, interleaved, random_tables(table_batch, s.length, s.rotary_dim),
                    weights);
      }
    }
  }
}

TEST_P(NormRotary, HasTheSameBitsWhereABlockTakesAToken) {
  for (const Shape& s : long_shapes()) {
    for (const bool interleaved : {false, true}) {
      const Both weights{random({s.head_dim}), random({s.head_dim})};
      expect_bits(s, interleaved ? 3 : 0, interleaved,
                  random_tables(s.batch, s.length, s.rotary_dim), weights);
    }
  }
}

TEST_P(NormRotary, TakesTablesAndWeightsInFloat32) {
  for (const Shape& s : shapes()) {
    const Both narrow = random_tables(1, s.length, s.rotary_dim);
    const Both tables{narrow.first.to(at::kFloat), narrow.second.to(at::kFloat)};
    const Both weights{random({s.head_dim}), random({s.head_dim})};
    for (const int64_t variant : {0, 1, 2, 3}) {
      expect_bits(s, variant, false, tables, weights);
    }
    const Both wide{at::randn({s.head_dim}).to(GetParam().device),
                    at::randn({s.head_dim}).to(GetParam().device)};
    for (const int64_t variant : {1, 2, 3}) {
      expect_bits(s, variant, true, narrow, wide);
      expect_bits(s, variant, false, tables, wide);
    }
  }
}

TEST_P(NormRotary, ErrsAtMostTwiceAsMuchAsPyTorch) {
  for (const Shape& s : shapes()) {
    for (const bool interleaved : {false, true}) {
      for (int64_t variant = 0; variant < 4; ++variant) {
        const Both weights{random({s.head_dim}), random({s.head_dim})};
        const Both tables = random_tables(s.batch, s.length, s.rotary_dim);
        const Both heads{random({s.batch, s.length, s.query_heads, s.head_dim}) * 3,
                         random({s.batch, s.length, s.key_heads, s.head_dim})};
        const Both ours = run(heads, weights, tables, variant, interleaved);
        const auto check = [&](const at::Tensor& out, const at::Tensor& x, const at::Tensor& w) {
          const at::Tensor exact = eager(x.to(at::kDouble), w.to(at::kDouble), to_double(tables),
                                         kEps, variant, interleaved);
          const at::Tensor theirs = eager(x, w, tables, kEps, variant, interleaved);
          EXPECT_LE(largest_error(out, exact), 2 * largest_error(theirs, exact) + half_unit(exact))
              << x.sizes() << " rotary " << s.rotary_dim << " variant " << variant
              << " interleaved " << interleaved;
        };
        check(ours.first, heads.first, weights.first);
        check(ours.second, heads.second, weights.second);
      }
    }
  }
}

TEST_P(NormRotary, ReadsQueryAndKeyWhereTheFusedProjectionLeftThem) {
  const Both tables = random_tables(1, 6, 64);
  const Both weights{random({64}), random({64})};
  for (const int64_t offset : {0, 3}) {  // aligned and not
    const at::Tensor fused = random({2, 6, (8 + 2 + 2) * 64 + 8});
    const auto heads = [&](int64_t first, int64_t count) {
      return fused.slice(-1, offset + first * 64, offset + (first + count) * 64)
          .unflatten(-1, {count, 64});
    };
    const Both views{heads(0, 8), heads(8, 2)};
    const Both out = run(views, weights, tables),
               dense = run({views.first.contiguous(), views.second.contiguous()}, weights, tables);
    EXPECT_TRUE(is_same_bits(out.first, dense.first));
    EXPECT_TRUE(is_same_bits(out.second, dense.second));
    // In place, and the values stay.
    const at::Tensor before = fused.clone();
    package()("norm_rotary_out", views.first, views.second, views.first, views.second,
              weights.first, weights.second, tables.first, tables.second, kEps, int64_t{0}, false);
    EXPECT_TRUE(is_same_bits(views.first, out.first));
    EXPECT_TRUE(is_same_bits(views.second, out.second));
    EXPECT_TRUE(is_same_bits(fused.slice(-1, offset + 640), before.slice(-1, offset + 640)));
  }
}

TEST_P(NormRotary, TakesHeadsBeforePositionsAsAView) {
  const Both tables = random_tables(2, 5, 64);
  const Both weights{random({64}), random({64})};
  const at::Tensor query = random({2, 8, 5, 64}), key = random({2, 2, 5, 64});
  const at::Tensor query_out = at::empty_like(query), key_out = at::empty_like(key);
  package()("norm_rotary_out", query_out.transpose(1, 2), key_out.transpose(1, 2),
            query.transpose(1, 2), key.transpose(1, 2), weights.first, weights.second, tables.first,
            tables.second, kEps, int64_t{3}, false);
  const Both expected = run({query.transpose(1, 2).contiguous(), key.transpose(1, 2).contiguous()},
                            weights, tables, 3);
  EXPECT_TRUE(is_same_bits(query_out.transpose(1, 2), expected.first));
  EXPECT_TRUE(is_same_bits(key_out.transpose(1, 2), expected.second));
}

TEST_P(NormRotary, KeepsNotANumberAndInfinityToTheirHeads) {
  const Both tables = random_tables(1, 2, 64);
  const Both weights{random({64}), random({64})};
  const Both heads{random({1, 2, 3, 64}), random({1, 2, 2, 64})};
  const Both before = run(heads, weights, tables);
  heads.first[0][0][1][7] = std::numeric_limits<double>::quiet_NaN();
  heads.second[0][1][0][63] = std::numeric_limits<double>::infinity();
  const Both after = run(heads, weights, tables);
  EXPECT_TRUE(after.first[0][0][1].isnan().all().item<bool>());
  EXPECT_TRUE(after.second[0][1][0].isnan().any().item<bool>());  // infinity / infinity
  for (const int64_t head : {0, 2}) {
    EXPECT_TRUE(is_same_bits(after.first[0][0][head], before.first[0][0][head]));
  }
  EXPECT_TRUE(is_same_bits(after.first[0][1], before.first[0][1]));
  EXPECT_TRUE(is_same_bits(after.second[0][1][1], before.second[0][1][1]));
}

TEST_P(NormRotary, ReadsEps) {
  const Both tables = random_tables(1, 3, 32);
  const Both weights{random({32}), random({32})};
  const Both heads{random({1, 3, 2, 32}) * 1e-3, random({1, 3, 1, 32}) * 1e-3};
  for (const double eps : {1e-12, 1e-5, 1.0}) {
    const Both ours = run(heads, weights, tables, 3, false, eps);
    const at::Tensor exact = eager(heads.first.to(at::kDouble), weights.first.to(at::kDouble),
                                   to_double(tables), eps, 3, false);
    const at::Tensor theirs = eager(heads.first, weights.first, tables, eps, 3, false);
    EXPECT_LE(largest_error(ours.first, exact), 2 * largest_error(theirs, exact) + half_unit(exact))
        << eps;
  }
}

TEST_P(NormRotary, DoesNothingWithoutTokens) {
  const Both out = run({random({2, 0, 4, 8}), random({2, 0, 1, 8})}, {random({8}), random({8})},
                       random_tables(1, 0, 8));
  EXPECT_EQ(out.first.numel() + out.second.numel(), 0);
}

TEST_P(NormRotary, HasTheSameBitsEveryTime) {
  const Both tables = random_tables(1, 19, 128);
  const Both weights{random({128}), random({128})};
  const Both heads{random({3, 19, 16, 128}), random({3, 19, 4, 128})};
  const Both first = run(heads, weights, tables);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const Both again = run(heads, weights, tables);
    ASSERT_TRUE(is_same_bits(again.first, first.first)) << repeat;
    ASSERT_TRUE(is_same_bits(again.second, first.second)) << repeat;
  }
}

TEST_P(NormRotary, NamesTheArgumentThatIsWrong) {
  const Both tables = random_tables(1, 3, 8);
  const Both heads{random({2, 3, 4, 8}), random({2, 3, 1, 8})};
  const Both weights{random({8}), random({8})};
  const auto message = [&](const Both& h, const Both& w, const Both& t, int64_t variant = 0) {
    return testing::message_of([&] { run(h, w, t, variant); });
  };
  using ::testing::HasSubstr;
  EXPECT_EQ(message(heads, weights, tables), "no error");
  EXPECT_THAT(message({heads.first[0], heads.second}, weights, tables),
              HasSubstr("[norm_rotary] query: expected shape [batch, length, heads, head_dim]"));
  EXPECT_THAT(
      message(heads, {weights.first, random({7})}, tables),
      HasSubstr("[norm_rotary] key_weight: expected shape [8] (head_dim of query), got [7]"));
  EXPECT_THAT(message(heads, {weights.first.to(at::kDouble), weights.second}, tables, 1),
              HasSubstr("[norm_rotary] query_weight: expected"));
  EXPECT_THAT(message(heads, weights, tables, 4),
              HasSubstr("[norm_rotary] variant: expected 0, 1, 2 or 3, got 4"));
  EXPECT_THAT(message(heads, weights, {tables.first, tables.second.slice(1, 0, 2)}),
              HasSubstr("[norm_rotary] sin: expected shape"));
  if (GetParam().dtype != at::kFloat) {
    EXPECT_THAT(
        message(heads, {weights.first.to(at::kFloat), weights.second.to(at::kFloat)}, tables),
        HasSubstr("(that of query, in variant 0), got float32"));
    EXPECT_THAT(message(heads, {weights.first, weights.second.to(at::kFloat)}, tables, 1),
                HasSubstr("[norm_rotary] key_weight: expected"));
  }
}

TEST_P(NormRotary, InfersShapesOnMetaTensors) {
  const auto meta = [&](at::IntArrayRef shape) { return random(shape).to(at::kMeta); };
  const Both out = run({meta({2, 3, 4, 8}), meta({2, 3, 1, 8})}, {meta({8}), meta({8})},
                       {meta({1, 3, 8}), meta({1, 3, 8})});
  EXPECT_EQ(out.first.sizes(), at::IntArrayRef({2, 3, 4, 8}));
  EXPECT_EQ(out.second.sizes(), at::IntArrayRef({2, 3, 1, 8}));
}

INSTANTIATE_TEST_SUITE_P(Devices, NormRotary, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using NormRotaryCuda = testing::OnCuda;

TEST_F(NormRotaryCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  at::Tensor query = at::randn({2, 9, 8, 128}, options);
  const at::Tensor key = at::randn({2, 9, 2, 128}, options), fresh = at::randn_like(query);
  const at::Tensor weight = at::randn({128}, options);
  const at::Tensor cos = at::randn({1, 9, 128}, options), sin = at::randn({1, 9, 128}, options);
  const at::Tensor query_out = at::zeros_like(query), key_out = at::zeros_like(key);
  const auto expected =
      package("norm_rotary", fresh, key, weight, weight, cos, sin, kEps, int64_t{0}, false);
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    package("norm_rotary_out", query_out, key_out, query, key, weight, weight, cos, sin, kEps,
            int64_t{0}, false);
  });
  EXPECT_EQ(query_out.abs().sum().item<double>(), 0) << "capture must not run the kernel";
  query.copy_(fresh);
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(query_out, expected.at(0).toTensor()));
  EXPECT_TRUE(is_same_bits(key_out, expected.at(1).toTensor()));
#endif
}

// Both kernels: whole vectors, and one element more than they hold.
TEST_F(NormRotaryCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  for (const int64_t head_dim : {128, 130}) {
    const int64_t length = is_small_run() ? 100 : (int64_t{1} << 31) / (32 * head_dim) + 3;
    const at::Tensor token = at::randn({1, 1, 32, head_dim}, options),
                     key = at::randn({1, 1, 1, head_dim}, options);
    const at::Tensor cos = at::randn({1, 1, head_dim}, options),
                     sin = at::randn({1, 1, head_dim}, options),
                     weight = at::randn({head_dim}, options);
    const at::Tensor query = token.expand({1, length, 32, head_dim}).contiguous();
    const auto expand = [&](const at::Tensor& table) {
      return table.expand({1, length, head_dim});
    };
    const at::Tensor keys = key.expand({1, length, 1, head_dim}),
                     keys_out = at::empty(keys.sizes(), options);
    package("norm_rotary_out", query, keys_out, query, keys, weight, weight, expand(cos),
            expand(sin), kEps, int64_t{0}, false);
    const auto expected =
        package("norm_rotary", token, key, weight, weight, cos, sin, kEps, int64_t{0}, false);
    EXPECT_TRUE(is_same_bits(query.slice(1, length - 1), expected.at(0).toTensor())) << head_dim;
    EXPECT_TRUE(is_same_bits(keys_out.slice(1, length - 1), expected.at(1).toTensor()));
    EXPECT_TRUE(
        is_same_bits(query.slice(1, length / 2, length / 2 + 1), expected.at(0).toTensor()));
  }
}

}  // namespace
}  // namespace graft_kernels::rotary

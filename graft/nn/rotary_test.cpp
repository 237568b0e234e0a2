#include "graft/nn/rotary.h"

#include <cmath>

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::nn {
namespace {

std::vector<double> frequencies(const RopeParameters& parameters, int64_t head_dim,
                                int64_t length = 0) {
  const at::Tensor f =
      RotaryEmbedding(parameters, head_dim).inverse_frequencies(length).to(at::kDouble);
  return {f.data_ptr<double>(), f.data_ptr<double>() + f.numel()};
}

TEST(RotaryEmbedding, ComputesDefaultAndLinearFrequencies) {
  const auto plain = frequencies({.theta = 10000.0}, 8);
  const auto linear = frequencies({.type = RopeType::kLinear, .theta = 10000.0, .factor = 4.0}, 8);
  ASSERT_EQ(plain.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const double want = std::pow(10000.0, -static_cast<double>(2 * i) / 8.0);
    EXPECT_NEAR(plain[i], want, 1e-7 * want);
    EXPECT_NEAR(linear[i], want / 4.0, 1e-7 * want);
  }
}

TEST(RotaryEmbedding, StretchesThetaBeyondTheTrainedLengthWhenDynamic) {
  const RopeParameters p{
      .type = RopeType::kDynamic, .theta = 100.0, .factor = 2.0, .max_position_embeddings = 16};
  const auto within = frequencies(p, 8, 16), beyond = frequencies(p, 8, 32);
  const double theta = 100.0 * std::pow(2.0 * 32 / 16 - 1.0, 8.0 / 6.0);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(within[i], std::pow(100.0, -static_cast<double>(i) / 4), 1e-6);
    EXPECT_NEAR(beyond[i], std::pow(theta, -static_cast<double>(i) / 4), 1e-6);
  }
}

TEST(RotaryEmbedding, ScalesByWavelengthForLlama3) {
  const RopeParameters p{.type = RopeType::kLlama3,
                         .theta = 10000.0,
                         .factor = 8.0,
                         .original_max_position_embeddings = 64,
                         .low_freq_factor = 1.0,
                         .high_freq_factor = 4.0};
  const auto got = frequencies(p, 16);
  for (size_t i = 0; i < got.size(); ++i) {
    const double f = std::pow(10000.0, -static_cast<double>(i) / 8), wavelength = 2 * M_PI / f;
    const double smooth = (64 / wavelength - 1.0) / 3.0;
    const double want = wavelength < 16   ? f
                        : wavelength > 64 ? f / 8
                                          : (1 - smooth) * f / 8 + smooth * f;
    EXPECT_NEAR(got[i], want, 1e-6 * want) << i;
  }
}

TEST(RotaryEmbedding, ChoosesLongFactorsBeyondTheOriginalLength) {
  const RopeParameters p{.type = RopeType::kLongRope,
                         .theta = 100.0,
                         .partial_rotary_factor = 0.5,
                         .factor = 4.0,
                         .original_max_position_embeddings = 10,
                         .short_factor = {1.0, 2.0},
                         .long_factor = {4.0, 8.0}};
  const auto near = frequencies(p, 8, 10), far = frequencies(p, 8, 11);
  EXPECT_NEAR(near[0], 1.0, 1e-7);
  EXPECT_NEAR(near[1], 0.1 / 2, 1e-7);
  EXPECT_NEAR(far[0], 0.25, 1e-7);
  EXPECT_NEAR(far[1], 0.1 / 8, 1e-7);
  EXPECT_NEAR(RotaryEmbedding(p, 8).attention_scaling(),
              std::sqrt(1 + std::log(4.0) / std::log(10.0)), 1e-12);
}

TEST(RotaryEmbedding, BlendsAndScalesForYarn) {
  const RopeParameters p{.type = RopeType::kYarn,
                         .theta = 10000.0,
                         .factor = 4.0,
                         .original_max_position_embeddings = 4096};
  const auto got = frequencies(p, 64);
  EXPECT_NEAR(got.front(), 1.0, 1e-6);  // fast dimensions stay
  const double slowest = std::pow(10000.0, -62.0 / 64.0);
  EXPECT_NEAR(got.back(), slowest / 4.0, 1e-6 * slowest);  // slow ones are interpolated
  EXPECT_NEAR(RotaryEmbedding(p, 64).attention_scaling(), 0.1 * std::log(4.0) + 1.0, 1e-12);
}

// transformers' formula, word for word.
at::Tensor rotated(const at::Tensor& x, const RotaryTables& tables) {
  const int64_t dim = tables.cos.size(-1), half = dim / 2;
  const at::Tensor head = x.slice(-1, 0, dim);
  const at::Tensor other = at::cat({head.slice(-1, half, dim).neg(), head.slice(-1, 0, half)}, -1);
  const at::Tensor cos = tables.cos.unsqueeze(2), sin = tables.sin.unsqueeze(2);
  return at::cat({head * cos + other * sin, x.slice(-1, dim)}, -1).to(x.dtype());
}

TEST(RotaryReference, HasTheBitsOfTheFormulaInTransformers) {
  at::manual_seed(0);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto table_dtype : {dtype, at::kFloat}) {
      for (const double fraction : {1.0, 0.5}) {
        for (const int64_t length : {1, 5, 400}) {  // the last is too long to go through as one
          const RotaryEmbedding rotary({.partial_rotary_factor = fraction}, 16);
          const at::Tensor positions = at::arange(3, 3 + length).unsqueeze(0);
          const RotaryTables tables = rotary.tables(positions, 3 + length, table_dtype);
          const at::Tensor query = at::randn({2, length, 4, 16}).to(dtype);
          const at::Tensor key = at::randn({2, length, 2, 16}).to(dtype);
          const auto [got_query, got_key] =
              layers::Rotary::reference({})->forward(query, key, tables);
          EXPECT_TRUE(at::equal(got_query, rotated(query, tables))) << dtype << " " << length;
          EXPECT_TRUE(at::equal(got_key, rotated(key, tables))) << dtype << " " << length;
        }
      }
    }
  }
}

TEST(RopeType, RefusesAnUnknownNameListingTheKnownOnes) {
  EXPECT_EQ(parse_rope_type("su"), RopeType::kLongRope);
  try {
    parse_rope_type("spiral");
    FAIL() << "expected FormatError";
  } catch (const FormatError& error) {
    EXPECT_STREQ(
        error.what(),
        "[models.config] rope_type: expected one of `default`, `linear`, `dynamic`, `llama3`, "
        "`yarn`, `longrope`, `su`, got `spiral`");
  }
}

}  // namespace
}  // namespace graft::nn

// Rotary position embedding against eager ATen, one suite for all devices and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rotary {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

struct Tables {
  at::Tensor cos, sin;  // [B or 1, S, R]
};

// What transformers computes, operation by operation, for x [B, S, H, D].
at::Tensor eager(const at::Tensor& x, const Tables& tables, bool interleaved) {
  const int64_t rotary_dim = tables.cos.size(-1), half = rotary_dim / 2;
  const at::Tensor cos = tables.cos.unsqueeze(2), sin = tables.sin.unsqueeze(2);
  const at::Tensor head = x.narrow(-1, 0, rotary_dim);
  at::Tensor turned;
  if (interleaved) {
    const at::Tensor first = head.slice(-1, 0, rotary_dim, 2);
    const at::Tensor second = head.slice(-1, 1, rotary_dim, 2);
    turned = at::stack({-second, first}, -1).flatten(-2);
  } else {
    turned = at::cat({-head.narrow(-1, half, half), head.narrow(-1, 0, half)}, -1);
  }
  const at::Tensor out = (head * cos + turned * sin).to(x.scalar_type());
  return at::cat({out, x.narrow(-1, rotary_dim, x.size(-1) - rotary_dim)}, -1);
}

struct Shape {
  int64_t batch, length, query_heads, key_heads, head_dim, rotary_dim;
};

class Rotary : public testing::OnEachDevice {
 protected:
  // Tables as models make them, in `dtype`.
  Tables tables(int64_t batch, int64_t length, int64_t rotary_dim, bool interleaved,
                at::ScalarType dtype) const {
    const at::Tensor angles = at::rand({batch, length, rotary_dim / 2}) * 6.3;
    const at::Tensor both =
        interleaved ? angles.repeat_interleave(2, -1) : at::cat({angles, angles}, -1);
    return {both.cos().to(dtype).to(GetParam().device), both.sin().to(dtype).to(GetParam().device)};
  }
  const Package& package() const { return Package::for_device("rotary", GetParam().device); }
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& query, const at::Tensor& key,
                                           const Tables& tables, bool interleaved = false,
                                           bool inverse = false) const {
    const auto both = package()("rotary", query, key, tables.cos, tables.sin, interleaved, inverse);
    return {both.at(0).toTensor(), both.at(1).toTensor()};
  }
};

std::vector<Shape> shapes() {
  return {{1, 1, 1, 1, 2, 2},    {2, 7, 4, 2, 64, 64},   {1, 5, 32, 8, 128, 128},
          {3, 4, 6, 3, 80, 32},  {2, 3, 5, 1, 96, 96},   {1, 9, 3, 3, 10, 6},
          {2, 2, 71, 1, 64, 64}, {1, 3, 2, 2, 256, 256}, {2, 5, 4, 4, 64, 62},
          {1, 2, 8, 0, 64, 64},  {1, 300, 9, 3, 64, 64}, {2, 3, 40, 40, 192, 96}};
}

TEST_P(Rotary, HasTheBitsOfEagerEvaluation) {
  for (const Shape& s : shapes()) {
    for (const bool interleaved : {false, true}) {
      for (const int64_t table_batch : {int64_t{1}, s.batch}) {
        const Tables t = tables(table_batch, s.length, s.rotary_dim, interleaved, GetParam().dtype);
        const at::Tensor query = random({s.batch, s.length, s.query_heads, s.head_dim});
        const at::Tensor key = random({s.batch, s.length, s.key_heads, s.head_dim});
        const auto [query_out, key_out] = rotate(query, key, t, interleaved);
        EXPECT_TRUE(is_same_bits(query_out, eager(query, t, interleaved)))
            << query.sizes() << " rotary " << s.rotary_dim << " interleaved " << interleaved;
        EXPECT_TRUE(is_same_bits(key_out, eager(key, t, interleaved))) << key.sizes();
      }
    }
  }
}

TEST_P(Rotary, RoundsOnceWithTablesInFloat32) {
  for (const Shape& s : shapes()) {
    const Tables t = tables(1, s.length, s.rotary_dim, false, at::kFloat);
    const at::Tensor query = random({s.batch, s.length, s.query_heads, s.head_dim});
    const at::Tensor key = random({s.batch, s.length, s.key_heads, s.head_dim});
    const auto [query_out, key_out] = rotate(query, key, t);
    EXPECT_TRUE(is_same_bits(query_out, eager(query, t, false))) << query.sizes();
    EXPECT_TRUE(is_same_bits(key_out, eager(key, t, false))) << key.sizes();
  }
}

TEST_P(Rotary, InverseIsTheGradient) {
  for (const Shape& s : shapes()) {
    for (const bool interleaved : {false, true}) {
      // Tables whose halves differ, so that a transposition left out would show.
      const Tables t{random({1, s.length, s.rotary_dim}), random({1, s.length, s.rotary_dim})};
      const at::Tensor query = random({s.batch, s.length, s.query_heads, s.head_dim});
      const at::Tensor grad = random(query.sizes());
      const auto gradient = [&](at::ScalarType dtype) {
        const at::Tensor leaf = query.to(dtype).clone().set_requires_grad(true);
        eager(leaf, {t.cos.to(dtype), t.sin.to(dtype)}, interleaved).backward(grad.to(dtype));
        return leaf.grad();
      };
      const at::Tensor exact = gradient(at::kDouble);
      const auto [ours, none] =
          rotate(grad, random({s.batch, s.length, 0, s.head_dim}), t, interleaved, true);
      EXPECT_LE(largest_error(ours, exact),
                2 * largest_error(gradient(GetParam().dtype), exact) + 1e-6)
          << query.sizes() << " interleaved " << interleaved;
    }
  }
}

TEST_P(Rotary, ReadsQueryAndKeyWhereTheFusedProjectionLeftThem) {
  const Tables t = tables(1, 6, 64, false, GetParam().dtype);
  for (const int64_t offset : {0, 3}) {  // aligned and not
    const at::Tensor fused = random({2, 6, (8 + 2 + 2) * 64 + 8});
    const auto heads = [&](int64_t first, int64_t count) {
      return fused.slice(-1, offset + first * 64, offset + (first + count) * 64)
          .unflatten(-1, {count, 64});
    };
    const at::Tensor query = heads(0, 8), key = heads(8, 2);
    const auto [query_out, key_out] = rotate(query, key, t);
    EXPECT_TRUE(is_same_bits(query_out, eager(query, t, false)));
    EXPECT_TRUE(is_same_bits(key_out, eager(key, t, false)));
    // In place, and the values stay.
    const at::Tensor before = fused.clone();
    package()("rotary_out", query, key, query, key, t.cos, t.sin, false, false);
    EXPECT_TRUE(is_same_bits(query, query_out));
    EXPECT_TRUE(is_same_bits(key, key_out));
    EXPECT_TRUE(is_same_bits(fused.slice(-1, offset + 640), before.slice(-1, offset + 640)));
  }
}

TEST_P(Rotary, TakesHeadsBeforePositionsAsAView) {
  const Tables t = tables(2, 5, 64, false, GetParam().dtype);
  const at::Tensor query = random({2, 8, 5, 64}), key = random({2, 2, 5, 64});
  at::Tensor query_out = at::empty_like(query), key_out = at::empty_like(key);
  package()("rotary_out", query_out.transpose(1, 2), key_out.transpose(1, 2), query.transpose(1, 2),
            key.transpose(1, 2), t.cos, t.sin, false, false);
  EXPECT_TRUE(is_same_bits(query_out.transpose(1, 2), eager(query.transpose(1, 2), t, false)));
  EXPECT_TRUE(is_same_bits(key_out.transpose(1, 2), eager(key.transpose(1, 2), t, false)));
}

TEST_P(Rotary, DoesNothingWithoutTokens) {
  const auto [query, key] =
      rotate(random({2, 0, 4, 8}), random({2, 0, 1, 8}), tables(1, 0, 8, false, GetParam().dtype));
  EXPECT_EQ(query.numel() + key.numel(), 0);
}

TEST_P(Rotary, NamesTheArgumentThatIsWrong) {
  const Tables t = tables(1, 3, 8, false, GetParam().dtype);
  const at::Tensor query = random({2, 3, 4, 8}), key = random({2, 3, 1, 8});
  const auto message = [&](const at::Tensor& q, const at::Tensor& k, const Tables& by) {
    return testing::message_of([&] { rotate(q, k, by); });
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message(query[0], key, t),
              HasSubstr("[rotary] query: expected shape [batch, length, heads, head_dim]"));
  EXPECT_THAT(message(query, random({2, 2, 1, 8}), t),
              HasSubstr("[rotary] key: expected batch, length and head_dim of query"));
  EXPECT_THAT(message(query, key, {t.cos, t.sin.slice(1, 0, 2)}),
              HasSubstr("[rotary] sin: expected shape [1 or 2, 3, even, at least 2, at most 8]"));
  EXPECT_THAT(message(query, key, {t.cos.to(at::kDouble), t.sin.to(at::kDouble)}),
              HasSubstr("[rotary] cos: expected"));
  EXPECT_THAT(message(query.transpose(2, 3), key, t), HasSubstr("[rotary] query: expected"));
}

TEST_P(Rotary, InfersShapesOnMetaTensors) {
  const auto both =
      package()("rotary", random({2, 3, 4, 8}).to(at::kMeta), random({2, 3, 1, 8}).to(at::kMeta),
                random({1, 3, 8}).to(at::kMeta), random({1, 3, 8}).to(at::kMeta), false, false);
  EXPECT_EQ(both.at(0).toTensor().sizes(), at::IntArrayRef({2, 3, 4, 8}));
  EXPECT_EQ(both.at(1).toTensor().sizes(), at::IntArrayRef({2, 3, 1, 8}));
}

INSTANTIATE_TEST_SUITE_P(Devices, Rotary, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using RotaryCuda = testing::OnCuda;

TEST_F(RotaryCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  at::Tensor query = at::randn({2, 9, 8, 64}, options);
  const at::Tensor key = at::randn({2, 9, 2, 64}, options), fresh = at::randn_like(query);
  const at::Tensor cos = at::randn({1, 9, 64}, options), sin = at::randn({1, 9, 64}, options);
  const at::Tensor query_out = at::zeros_like(query), key_out = at::zeros_like(key);
  const auto expected = package("rotary", fresh, key, cos, sin, false, false);
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    package("rotary_out", query_out, key_out, query, key, cos, sin, false, false);
  });
  EXPECT_EQ(query_out.abs().sum().item<double>(), 0) << "capture must not run the kernel";
  query.copy_(fresh);
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(query_out, expected.at(0).toTensor()));
#endif
}

TEST_F(RotaryCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const int64_t length = is_small_run() ? 100 : (int64_t{1} << 31) / 4096 + 3;
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor token = at::randn({1, 1, 32, 128}, options),
                   key = at::randn({1, 1, 1, 128}, options);
  const at::Tensor cos = at::randn({1, 1, 128}, options), sin = at::randn({1, 1, 128}, options);
  const at::Tensor query = token.expand({1, length, 32, 128}).contiguous();
  const auto expand = [&](const at::Tensor& table) { return table.expand({1, length, 128}); };
  const at::Tensor keys = key.expand({1, length, 1, 128}),
                   keys_out = at::empty(keys.sizes(), options);
  package("rotary_out", query, keys_out, query, keys, expand(cos), expand(sin), false, false);
  const auto expected = package("rotary", token, key, cos, sin, false, false);
  EXPECT_TRUE(is_same_bits(query.slice(1, length - 1), expected.at(0).toTensor()));
  EXPECT_TRUE(is_same_bits(keys_out.slice(1, length - 1), expected.at(1).toTensor()));
}

}  // namespace
}  // namespace graft_kernels::rotary

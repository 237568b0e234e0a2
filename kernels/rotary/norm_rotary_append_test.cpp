// The append of one token a row with a norm against norm, rotation and append one after another.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/rotary/norm_rotary_test.h"

namespace graft_kernels::rotary {
namespace {

using testing::is_same_bits;
using testing::Package;

constexpr double kEps = 1e-6;
constexpr int64_t kPositions = 40;

struct CacheShape {
  int64_t batch, query_heads, key_heads, head_dim, rotary_dim, places;
};

constexpr CacheShape kShapes[] = {
    {1, 32, 8, 128, 128, 33}, {3, 6, 3, 80, 32, 7},   {2, 4, 2, 64, 64, 1},
    {1, 1, 1, 2, 2, 5},       {2, 71, 1, 64, 64, 9},  {2, 3, 3, 10, 6, 4},
    {5, 8, 4, 256, 256, 3},   {300, 4, 2, 64, 64, 3}, {2, 4, 4, 512, 62, 3}};

class NormRotaryAppend : public testing::OnEachDevice {
 protected:
  at::Tensor counts(std::vector<int64_t> values) const {
    return at::tensor(values, at::kLong).to(at::kInt).to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("rotary", GetParam().device); }

  void expect_bits(const CacheShape& s, bool interleaved, at::ScalarType table_dtype,
                   int64_t variant) const {
    const at::Tensor fused = random({s.batch, 1, s.query_heads + 2 * s.key_heads, s.head_dim});
    const at::Tensor query = fused.narrow(2, 0, s.query_heads),
                     key = fused.narrow(2, s.query_heads, s.key_heads),
                     value = fused.narrow(2, s.query_heads + s.key_heads, s.key_heads);
    const Both weights{random({s.head_dim}), random({s.head_dim})};
    const at::Tensor cos = random({kPositions, s.rotary_dim}).to(table_dtype),
                     sin = random({kPositions, s.rotary_dim}).to(table_dtype);
    const at::Tensor keys = random({s.batch, s.key_heads, s.places, s.head_dim});
    // Places before heads, as other caches have them.
    const at::Tensor values = random({s.batch, s.places, s.key_heads, s.head_dim}).transpose(1, 2);
    std::vector<int64_t> lengths, positions;
    for (int64_t row = 0; row < s.batch; ++row) {
      lengths.push_back(1 + (row * 5 + 2) % s.places);
      positions.push_back((row * 17 + 39) % kPositions);
    }
    const at::Tensor their_keys = keys.clone(), their_values = values.clone();
    const at::Tensor out = at::empty_like(query), theirs = at::empty_like(query);
    const Both normed = normed_by_package(GetParam().device, {query, key}, weights, kEps, variant);
    package()("rotary_append_out", theirs, their_keys, their_values, normed.first, normed.second,
              value, cos, sin, counts(lengths), counts(positions), interleaved);
    package()("norm_rotary_append_out", out, keys, values, query, key, value, weights.first,
              weights.second, cos, sin, counts(lengths), counts(positions), kEps, variant,
              interleaved);
    const std::string what = c10::str(query.sizes(), " rotary ", s.rotary_dim, " variant ", variant,
                                      " interleaved ", interleaved);
    EXPECT_TRUE(is_same_bits(out, theirs)) << what;
    EXPECT_TRUE(is_same_bits(keys, their_keys)) << what;
    EXPECT_TRUE(is_same_bits(values, their_values)) << what;
  }
};

TEST_P(NormRotaryAppend, HasTheBitsOfNormRotationAndAppendOneAfterAnother) {
  for (const CacheShape& s : kShapes) {
    for (const bool interleaved : {false, true}) {
      for (const at::ScalarType table_dtype : {GetParam().dtype, at::kFloat}) {
        for (const int64_t variant : {0, 1, 3}) {
          expect_bits(s, interleaved, table_dtype, variant);
        }
      }
    }
  }
}

TEST_P(NormRotaryAppend, LeavesARowAloneWhosePlaceLiesOutside) {
  for (const int64_t head_dim : {64, 10}) {  // in vectors, and by elements
    const at::Tensor query = random({4, 1, 2, head_dim}), key = random({4, 1, 1, head_dim});
    const at::Tensor keys = random({4, 1, 3, head_dim}), values = random({4, 1, 3, head_dim});
    const at::Tensor before = keys.clone(), values_before = values.clone();
    const at::Tensor cos = random({5, head_dim}), weight = random({head_dim});
    const at::Tensor out = query.clone();
    package()("norm_rotary_append_out", out, keys, values, query, key, key, weight, weight, cos,
              cos, counts({0, 4, 2, 2}), counts({0, 0, 5, -1}), kEps, int64_t{0}, false);
    EXPECT_TRUE(is_same_bits(keys, before)) << head_dim;
    EXPECT_TRUE(is_same_bits(values, values_before)) << head_dim;
    EXPECT_TRUE(is_same_bits(out, query)) << head_dim;
  }
}

TEST_P(NormRotaryAppend, DoesNothingWithoutRows) {
  const at::Tensor query = random({0, 1, 2, 8}), key = random({0, 1, 1, 8});
  const at::Tensor cache = random({0, 1, 3, 8}), cos = random({5, 8}), weight = random({8});
  package()("norm_rotary_append_out", at::empty_like(query), cache, cache.clone(), query, key, key,
            weight, weight, cos, cos, counts({}), counts({}), kEps, int64_t{0}, false);
}

TEST_P(NormRotaryAppend, NamesTheArgumentThatIsWrong) {
  const at::Tensor query = random({2, 1, 4, 8}), key = random({2, 1, 2, 8});
  const at::Tensor cache = random({2, 2, 5, 8}), cos = random({9, 8}), length = counts({1, 1});
  const auto message = [&](const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weight,
                           int64_t variant) {
    return testing::message_of([&] {
      package()("norm_rotary_append_out", at::empty_like(q), keys, cache, q, key, key, weight,
                weight, cos, cos, length, length, kEps, variant, false);
    });
  };
  using ::testing::HasSubstr;
  const at::Tensor weight = random({8});
  EXPECT_EQ(message(query, cache, weight, 0), "no error");
  EXPECT_THAT(message(random({2, 3, 4, 8}), cache, weight, 0),
              HasSubstr("[norm_rotary_append_out] query: expected shape [any, 1, any, any]"));
  EXPECT_THAT(message(query, random({2, 3, 5, 8}), weight, 0),
              HasSubstr("[norm_rotary_append_out] keys: expected shape [2, 2, any, 8]"));
  EXPECT_THAT(message(query, cache, random({1, 8}), 0),
              HasSubstr("[norm_rotary_append_out] query_weight: expected shape [8]"));
  EXPECT_THAT(message(query, cache, weight, -1),
              HasSubstr("[norm_rotary_append_out] variant: expected 0, 1, 2 or 3, got -1"));
}

INSTANTIATE_TEST_SUITE_P(Devices, NormRotaryAppend, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using NormRotaryAppendCuda = testing::OnCuda;

TEST_F(NormRotaryAppendCuda, ServesEveryPlaceFromOneCapture) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor query = at::randn({1, 1, 32, 128}, options),
                   key = at::randn({1, 1, 8, 128}, options), weight = at::randn({128}, options);
  const at::Tensor cos = at::randn({9, 128}, options), sin = at::randn({9, 128}, options);
  const at::Tensor keys = at::zeros({1, 8, 9, 128}, options), values = at::zeros_like(keys);
  const at::Tensor out = at::empty_like(query);
  const at::Tensor count = at::zeros({1}, options.dtype(at::kInt));
  const at::Tensor position = at::full({1}, -1, options.dtype(at::kInt));
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    at::Tensor place = count, row = position;
    place.add_(1);
    row.add_(1);
    package("norm_rotary_append_out", out, keys, values, query, key, key, weight, weight, cos, sin,
            count, position, kEps, int64_t{0}, false);
  });
  for (int64_t step = 0; step < 9; ++step) {
    graph.launch();
    stream.synchronize();
    const auto expected =
        package("norm_rotary", query, key, weight, weight, cos.narrow(0, step, 1).unsqueeze(0),
                sin.narrow(0, step, 1).unsqueeze(0), kEps, int64_t{0}, false);
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(out, expected.at(0).toTensor())) << step;
    EXPECT_TRUE(is_same_bits(keys.select(2, step), expected.at(1).toTensor().squeeze(1))) << step;
    EXPECT_TRUE(is_same_bits(values.select(2, step), key.squeeze(1))) << step;
  }
#endif
}

}  // namespace
}  // namespace graft_kernels::rotary

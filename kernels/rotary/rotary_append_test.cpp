// The append of one token a row against the rotation of that token, one suite for all devices and dtypes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rotary {
namespace {

using testing::is_same_bits;
using testing::Package;

struct Shape {
  int64_t batch, query_heads, key_heads, head_dim, rotary_dim, places;
};

constexpr Shape kShapes[] = {{1, 32, 8, 64, 64, 33}, {3, 6, 3, 80, 32, 7},  {2, 4, 2, 128, 128, 1},
                             {1, 1, 1, 2, 2, 5},     {2, 71, 1, 64, 64, 9}, {2, 3, 3, 10, 6, 4},
                             {5, 8, 8, 256, 62, 3}};

class RotaryAppend : public testing::OnEachDevice {
 protected:
  at::Tensor counts(std::vector<int64_t> values) const {
    return at::tensor(values, at::kLong).to(at::kInt).to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("rotary", GetParam().device); }
};

TEST_P(RotaryAppend, HasTheBitsOfARotationAndACopy) {
  for (const Shape& s : kShapes) {
    for (const bool interleaved : {false, true}) {
      for (const at::ScalarType table_dtype : {GetParam().dtype, at::kFloat}) {
        constexpr int64_t kPositions = 40;
        const at::Tensor fused = random({s.batch, 1, s.query_heads + 2 * s.key_heads, s.head_dim});
        const at::Tensor query = fused.narrow(2, 0, s.query_heads),
                         key = fused.narrow(2, s.query_heads, s.key_heads),
                         value = fused.narrow(2, s.query_heads + s.key_heads, s.key_heads);
        const at::Tensor cos = random({kPositions, s.rotary_dim}).to(table_dtype),
                         sin = random({kPositions, s.rotary_dim}).to(table_dtype);
        at::Tensor keys = random({s.batch, s.key_heads, s.places, s.head_dim});
        // Places before heads, as other caches have them.
        at::Tensor values = random({s.batch, s.places, s.key_heads, s.head_dim}).transpose(1, 2);
        std::vector<int64_t> lengths, positions;
        for (int64_t row = 0; row < s.batch; ++row) {
          lengths.push_back(1 + (row * 5 + 2) % s.places);
          positions.push_back((row * 17 + 39) % kPositions);
        }
        at::Tensor expected_keys = keys.clone(), expected_values = values.clone();
        const at::Tensor rows = at::tensor(positions, at::kLong).to(GetParam().device);
        const auto rotated = package()("rotary", query, key, cos.index_select(0, rows).unsqueeze(1),
                                       sin.index_select(0, rows).unsqueeze(1), interleaved, false);
        for (int64_t row = 0; row < s.batch; ++row) {
          const int64_t place = lengths[static_cast<size_t>(row)] - 1;
          expected_keys[row].select(1, place).copy_(rotated.at(1).toTensor()[row][0]);
          expected_values[row].select(1, place).copy_(value[row][0]);
        }
        at::Tensor out = at::empty_like(query);
        package()("rotary_append_out", out, keys, values, query, key, value, cos, sin,
                  counts(lengths), counts(positions), interleaved);
        EXPECT_TRUE(is_same_bits(out, rotated.at(0).toTensor()))
            << query.sizes() << " rotary " << s.rotary_dim << " interleaved " << interleaved;
        EXPECT_TRUE(is_same_bits(keys, expected_keys)) << keys.sizes();
        EXPECT_TRUE(is_same_bits(values, expected_values)) << values.sizes();
      }
    }
  }
}

TEST_P(RotaryAppend, LeavesARowAloneWhosePlaceLiesOutside) {
  const at::Tensor query = random({4, 1, 2, 8}), key = random({4, 1, 1, 8});
  const at::Tensor keys = random({4, 1, 3, 8}), values = random({4, 1, 3, 8});
  const at::Tensor before = keys.clone(), cos = random({5, 8}), out = at::empty_like(query);
  package()("rotary_append_out", out, keys, values, query, key, key, cos, cos, counts({0, 4, 2, 2}),
            counts({0, 0, 5, -1}), false);
  EXPECT_TRUE(is_same_bits(keys, before));
}

TEST_P(RotaryAppend, NamesTheArgumentThatIsWrong) {
  const at::Tensor query = random({2, 1, 4, 8}), key = random({2, 1, 2, 8});
  const at::Tensor cache = random({2, 2, 5, 8}), cos = random({9, 8});
  const at::Tensor length = counts({1, 1});
  const auto message = [&](const at::Tensor& q, const at::Tensor& keys, const at::Tensor& table,
                           const at::Tensor& lengths) {
    return testing::message_of([&] {
      package()("rotary_append_out", at::empty_like(q), keys, cache, q, key, key, table, table,
                lengths, length, false);
    });
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message(random({2, 3, 4, 8}), cache, cos, length),
              HasSubstr("[rotary_append_out] query: expected shape [any, 1, any, any]"));
  EXPECT_THAT(message(query, random({2, 3, 5, 8}), cos, length),
              HasSubstr("[rotary_append_out] keys: expected shape [2, 2, any, 8]"));
  EXPECT_THAT(message(query, cache, random({9, 7}), length),
              HasSubstr("[rotary_append_out] cos: expected shape [positions, even"));
  EXPECT_THAT(message(query, cache, cos, length.to(at::kLong)),
              HasSubstr("[rotary_append_out] lengths: expected int32"));
  EXPECT_EQ(message(query, cache, cos, length), "no error");
}

INSTANTIATE_TEST_SUITE_P(Devices, RotaryAppend, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using RotaryAppendCuda = testing::OnCuda;

TEST_F(RotaryAppendCuda, ServesEveryPlaceFromOneCapture) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rotary", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor query = at::randn({1, 1, 32, 64}, options),
                   key = at::randn({1, 1, 8, 64}, options);
  const at::Tensor cos = at::randn({9, 64}, options), sin = at::randn({9, 64}, options);
  const at::Tensor keys = at::zeros({1, 8, 9, 64}, options), values = at::zeros_like(keys);
  const at::Tensor out = at::empty_like(query);
  at::Tensor count = at::zeros({1}, options.dtype(at::kInt));
  const at::Tensor position = at::full({1}, -1, options.dtype(at::kInt));
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    at::Tensor place = count, row = position;
    place.add_(1);
    row.add_(1);
    package("rotary_append_out", out, keys, values, query, key, key, cos, sin, count, position,
            false);
  });
  for (int64_t step = 0; step < 9; ++step) {
    graph.launch();
    stream.synchronize();
    const auto rotated = package("rotary", query, key, cos.narrow(0, step, 1).unsqueeze(0),
                                 sin.narrow(0, step, 1).unsqueeze(0), false, false);
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(out, rotated.at(0).toTensor())) << step;
    EXPECT_TRUE(is_same_bits(keys.select(2, step), rotated.at(1).toTensor().squeeze(1))) << step;
    EXPECT_TRUE(is_same_bits(values.select(2, step), key.squeeze(1))) << step;
  }
#endif
}

}  // namespace
}  // namespace graft_kernels::rotary

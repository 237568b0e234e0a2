// The linear layer on CUDA against float64 and ATen: rows and tails that our products take, and those that
// ATen's take.

#include <array>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::linear {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

class LinearCuda : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(11);
  }
  at::Tensor random(at::IntArrayRef sizes) const {
    return at::randn(sizes, at::TensorOptions(at::kCUDA)).to(GetParam());
  }
  static const Package& package() { return Package::get("linear", testing::kCudaVariant); }
  static at::Tensor apply(const at::Tensor& x, const at::Tensor& weight,
                          const c10::IValue& bias = {}) {
    return package()("linear", x, weight, bias)[0].toTensor();
  }
  // `x` with the same values and 16-byte alignment lost.
  static at::Tensor misaligned(const at::Tensor& x) {
    return at::cat({x.new_zeros({1}), x.flatten()}).narrow(0, 1, x.numel()).view(x.sizes());
  }
  // Error against float64, and ATen's own; the output's memory was NaN before.
  void expect_as_good_as_aten(const at::Tensor& x, const at::Tensor& weight,
                              const at::Tensor& bias = {}) {
    at::Tensor exact = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
    if (bias.defined()) {
      exact += bias.to(at::kDouble);
    }
    const auto optional = bias.defined() ? std::optional(bias) : std::nullopt;
    const at::Tensor theirs = at::linear(x, weight, optional);
    const at::Tensor ours = at::full_like(theirs, std::numeric_limits<double>::quiet_NaN());
    package()("linear_out", ours, x, weight, bias.defined() ? c10::IValue(bias) : c10::IValue());
    // Sums in float32 in another order than ATen's may each be a rounding of the dtype away.
    const double unit = GetParam() == at::kFloat  ? 0x1p-22
                        : GetParam() == at::kHalf ? 0x1p-11
                                                  : 0x1p-8;
    EXPECT_LE(largest_error(ours, exact),
              2 * largest_error(theirs, exact) + unit * exact.abs().max().item<double>() / 16)
        << x.sizes() << " " << weight.sizes();
  }
};

TEST_P(LinearCuda, IsAsGoodAsAtenAtEveryNumberOfRowsAndTail) {
  for (const int64_t rows : {1, 2, 3, 7, 8, 9, 15, 16, 17, 40}) {
    for (const int64_t depth : {1, 7, 8, 24, 120, 128, 136, 333, 576, 1024, 1032, 2056}) {
      for (const int64_t columns : {1, 7, 8, 15, 16, 17, 100}) {
        if (is_small_run() && (rows + depth + columns) % 5 != 0) {
          continue;
        }
        expect_as_good_as_aten(random({rows, depth}), random({columns, depth}), random({columns}));
      }
    }
  }
  expect_as_good_as_aten(random({1, 2048}), random({16384, 2048}));
  expect_as_good_as_aten(random({5, 8192}), random({2048, 8192}));
}

TEST_P(LinearCuda, TakesViewsAndUnalignedMemory) {
  const at::Tensor weight = random({24, 40});
  expect_as_good_as_aten(random({40}), weight);
  expect_as_good_as_aten(random({2, 3, 40}), weight);
  expect_as_good_as_aten(misaligned(random({3, 40})), weight);
  expect_as_good_as_aten(random({3, 40}), misaligned(weight));
  expect_as_good_as_aten(random({3, 80}).narrow(1, 8, 40), weight);
  expect_as_good_as_aten(random({5, 3, 64}).narrow(2, 8, 40).transpose(0, 1), weight);
  expect_as_good_as_aten(random({1, 40}).expand({6, 40}), weight);
  EXPECT_EQ(apply(random({0, 40}), weight).sizes(), (at::IntArrayRef{0, 24}));
  EXPECT_TRUE(apply(random({3, 0}), random({5, 0})).eq(0).all().item<bool>());
}

TEST_P(LinearCuda, GivesARowTheSameBitsWhateverRowsStandBesideIt) {
  if (GetParam() == at::kFloat) {
    return;  // ATen's products
  }
  const at::Tensor x = random({16, 1160}), weight = random({77, 1160});
  const at::Tensor all = apply(x, weight);
  for (int64_t row = 0; row < 16; ++row) {
    EXPECT_TRUE(is_same_bits(apply(x.narrow(0, row, 1), weight), all.narrow(0, row, 1))) << row;
  }
}

TEST_P(LinearCuda, JoinedWeightsGiveTheBitsOfSeparateOnes) {
  for (const int64_t rows : {0, 1, 3, 16, 17}) {
    for (const auto& [first, second, third] :
         {std::array<int64_t, 3>{576, 192, 192}, {7, 0, 13}, {1, 8, 300}}) {
      const at::Tensor x = random({rows, 104});
      const at::Tensor weights[3] = {random({first, 104}), random({second, 104}),
                                     random({third, 104})};
      const at::Tensor bias = random({second});
      const at::Tensor out = at::empty({rows, first + second + third}, x.options());
      package()("linear_join_out", out, x, weights[0], weights[1], weights[2], c10::IValue(), bias,
                c10::IValue());
      const at::Tensor separate =
          at::cat({apply(x, weights[0]), apply(x, weights[1], bias), apply(x, weights[2])}, 1);
      EXPECT_TRUE(is_same_bits(out, separate)) << rows << " rows, " << first << "+" << second;
    }
  }
}

TEST_P(LinearCuda, GivesTheSameBitsEveryTime) {
  const at::Tensor x = random({3, 2048}), weight = random({4099, 2048});
  const at::Tensor first = apply(x, weight);
  for (int run = 0; run < (is_small_run() ? 5 : 250); ++run) {
    ASSERT_TRUE(is_same_bits(apply(x, weight), first)) << run;
  }
}

TEST_P(LinearCuda, PassesNanAndInfinityOnToTheirRowsAlone) {
  at::Tensor x = random({9, 64});
  at::Tensor weight = random({20, 64});
  x[8][3] = std::numeric_limits<double>::quiet_NaN();
  weight[17][5] = std::numeric_limits<double>::infinity();
  const at::Tensor out = apply(x, weight);
  EXPECT_TRUE(out[8].isnan().all().item<bool>());
  EXPECT_FALSE(out.narrow(0, 0, 8).isnan().any().item<bool>());
  EXPECT_TRUE(out.narrow(0, 0, 8).select(1, 17).isinf().all().item<bool>());
  EXPECT_EQ(out.narrow(0, 0, 8).isinf().sum().item<int64_t>(), 8);
}

// In a capture launches overlap: each reads what the one before wrote.
TEST_P(LinearCuda, ChainsInAGraphGiveTheBitsOfSeparateCalls) {
#ifdef GRAFT_WITH_CUDA  // else there was no device to get here with
  const at::Tensor x = random({1, 2048});
  const at::Tensor first = random({2048, 2048}) / 45, second = random({512, 2048}) / 45;
  const at::Tensor back = random({2048, 512}) / 22;
  at::Tensor state = x.clone(), narrow = at::empty({1, 512}, x.options());
  at::Tensor wide = at::empty_like(x);
  const auto chain = [&] {
    for (int turn = 0; turn < 20; ++turn) {
      package()("linear_out", wide, state, first, c10::IValue());
      package()("linear_out", narrow, wide, second, c10::IValue());
      package()("linear_out", state, narrow, back, c10::IValue());
    }
  };
  chain();
  const at::Tensor expected =
      state.cpu();  // which waits: the stream below does not wait for this one
  const testing::CurrentStream stream;
  state.copy_(x);
  const testing::CapturedGraph graph(stream, chain);
  for (int replay = 0; replay < 20; ++replay) {
    state.copy_(x);
    graph.launch();
    stream.synchronize();
    ASSERT_TRUE(is_same_bits(state.cpu(), expected)) << replay;
  }
#endif
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LinearCuda,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::linear

// The linear layer against ATen and float64 on the CPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::linear {
namespace {

using testing::is_same_bits;
using testing::Package;

class Linear : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes).to(GetParam()); }
  static const Package& package() { return Package::get("linear", testing::kCpuVariant); }
  static at::Tensor apply(const at::Tensor& x, const at::Tensor& weight,
                          const c10::IValue& bias = {}) {
    return package()("linear", x, weight, bias)[0].toTensor();
  }
  void SetUp() override { at::manual_seed(7); }

  // Error against float64, and ATen's own.
  void expect_as_good_as_aten(const at::Tensor& x, const at::Tensor& weight,
                              const at::Tensor& bias = {}) {
    at::Tensor exact = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
    if (bias.defined()) {
      exact += bias.to(at::kDouble);
    }
    const std::optional<at::Tensor> optional = bias.defined() ? std::optional(bias) : std::nullopt;
    const at::Tensor ours = apply(x, weight, bias.defined() ? c10::IValue(bias) : c10::IValue());
    const at::Tensor theirs = at::linear(x, weight, optional);
    ASSERT_EQ(ours.sizes(), theirs.sizes());
    ASSERT_EQ(ours.scalar_type(), theirs.scalar_type());
    if (exact.numel() == 0) {
      return;
    }
    const double error = (ours.to(at::kDouble) - exact).abs().max().item<double>();
    const double own = (theirs.to(at::kDouble) - exact).abs().max().item<double>();
    // What rounding in the dtype may do to a sum of these products, whatever its order.
    const double one_unit = GetParam() == at::kFloat  ? 0x1p-24
                            : GetParam() == at::kHalf ? 0x1p-11
                                                      : 0x1p-8;
    const at::Tensor magnitude =
        at::matmul(x.to(at::kDouble).abs(), weight.to(at::kDouble).abs().t());
    const double floor =
        (GetParam() == at::kFloat ? one_unit * magnitude.max().item<double>() : 0.0);
    EXPECT_LE(error, 2 * own + floor) << x.sizes() << " " << weight.sizes();
  }
};

TEST_P(Linear, IsAsGoodAsAtenAtEveryNumberOfRowsAndTail) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 40}) {
    for (const int64_t depth : {1, 7, 8, 15, 64, 99, 576}) {
      for (const int64_t columns : {1, 7, 8, 33, 100}) {
        expect_as_good_as_aten(random({rows, depth}), random({columns, depth}), random({columns}));
      }
    }
  }
  expect_as_good_as_aten(random({1, 2048}), random({1500, 2048}));
  expect_as_good_as_aten(random({600, 65}), random({1100, 65}), random({1100}));
}

TEST_P(Linear, AcceptsAnyLeadingDimensionsStridedRowsAndNoRows) {
  const at::Tensor weight = random({24, 40});
  expect_as_good_as_aten(random({40}), weight);
  expect_as_good_as_aten(random({2, 3, 40}), weight);
  expect_as_good_as_aten(random({0, 40}), weight);
  expect_as_good_as_aten(random({3, 0}), random({5, 0}), random({5}));
  const at::Tensor wide = random({5, 3, 64});
  const at::Tensor view = wide.narrow(2, 8, 40).transpose(0, 1);
  EXPECT_TRUE(is_same_bits(apply(view, weight), apply(view.contiguous(), weight)));
}

TEST_P(Linear, GivesARowTheSameBitsWhateverRowsStandBesideIt) {
  const at::Tensor x = random({16, 333}), weight = random({77, 333});
  const at::Tensor all = apply(x, weight);
  for (int64_t row = 0; row < 16; ++row) {
    EXPECT_TRUE(is_same_bits(apply(x.narrow(0, row, 1), weight), all.narrow(0, row, 1))) << row;
  }
}

TEST_P(Linear, GivesTheSameBitsEveryTimeAndOnAnyNumberOfThreads) {
  const at::Tensor x = random({3, 512}), weight = random({4096, 512});
  const at::Tensor first = apply(x, weight);
  const int threads = at::get_num_threads();
  for (int run = 0; run < 250; ++run) {
    at::set_num_threads(1 + run % 2);
    ASSERT_TRUE(is_same_bits(apply(x, weight), first)) << run;
  }
  at::set_num_threads(threads);
}

TEST_P(Linear, JoinedWeightsGiveTheBitsOfSeparateOnes) {
  for (const int64_t rows : {0, 1, 3, 16, 17, 40}) {
    for (const auto& [first, second, third] :
         {std::array<int64_t, 3>{576, 192, 192}, {7, 0, 13}, {1, 8, 300}}) {
      const at::Tensor x = random({rows, 99});
      const at::Tensor weights[3] = {random({first, 99}), random({second, 99}),
                                     random({third, 99})};
      const at::Tensor bias = random({second});
      const at::Tensor out = at::empty({rows, first + second + third}, x.options());
      package()("linear_join_out", out, x, weights[0], weights[1], weights[2], c10::IValue(), bias,
                c10::IValue());
      const at::Tensor separate =
          at::cat({apply(x, weights[0]), apply(x, weights[1], bias), apply(x, weights[2])}, 1);
      EXPECT_TRUE(is_same_bits(out, separate)) << rows << " rows, " << first << "+" << second;
      const at::Tensor two = at::empty({rows, first + third}, x.options());
      package()("linear_join_out", two, x, weights[0], weights[2], c10::IValue(), c10::IValue(),
                c10::IValue(), c10::IValue());
      EXPECT_TRUE(is_same_bits(two, at::cat({apply(x, weights[0]), apply(x, weights[2])}, 1)));
    }
  }
}

TEST_P(Linear, PassesNanAndInfinityOn) {
  at::Tensor x = random({2, 64});
  const at::Tensor weight = random({9, 64});
  x[0][3] = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor out = apply(x, weight);
  EXPECT_TRUE(out[0].isnan().all().item<bool>());
  EXPECT_FALSE(out[1].isnan().any().item<bool>());
}

TEST_P(Linear, NamesTheArgumentThatIsWrong) {
  const auto message = [&](const at::Tensor& x, const at::Tensor& weight,
                           const c10::IValue& bias = {}) {
    try {
      apply(x, weight, bias);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(message(random({2, 8}), random({3, 9})),
              ::testing::HasSubstr("[linear] weight: expected shape [M, 8]"));
  EXPECT_THAT(message(random({2, 8}), random({3, 8}), random({4})),
              ::testing::HasSubstr("[linear] bias: expected shape [3]"));
  EXPECT_THAT(message(random({2, 8}), random({8, 3}).t()),
              ::testing::HasSubstr("[linear] weight: expected contiguous"));
  EXPECT_THAT(
      [&] {
        package()("linear_join_out", random({2, 7}), random({2, 8}), random({3, 8}), random({4, 9}),
                  c10::IValue(), c10::IValue(), c10::IValue(), c10::IValue());
      },
      ::testing::ThrowsMessage<std::exception>(
          ::testing::HasSubstr("[linear_join_out] second: expected shape [M, 8]")));
  EXPECT_THAT(message(random({2, 8}).to(at::kDouble), random({3, 8})),
              ::testing::HasSubstr("[linear] x: expected"));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Linear, ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::linear

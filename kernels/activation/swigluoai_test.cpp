// gpt-oss' activation and its gradient against the model's own steps, in its dtype and in float64.

#include <cmath>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::activation {
namespace {

using testing::count_different;
using testing::is_same_bits;
using testing::is_small_run;
using testing::Package;

constexpr double kAlpha = 1.702, kLimit = 7.0;

// As transformers' GptOssExperts writes it.
at::Tensor eager(const at::Tensor& pairs, double alpha = kAlpha, double limit = kLimit) {
  const at::Tensor gate = pairs.slice(-1, 0, c10::nullopt, 2).clamp_max(limit);
  const at::Tensor up = pairs.slice(-1, 1, c10::nullopt, 2).clamp(-limit, limit);
  return (up + 1) * (gate * at::sigmoid(gate * alpha));
}

class Swigluoai : public testing::OnEachDevice {
 protected:
  // Wide enough that clamps take effect.
  at::Tensor random(at::IntArrayRef shape) const {
    return (4 * at::randn(shape, at::kFloat)).to(GetParam().dtype).to(GetParam().device);
  }
  // At the limit itself every slope between none and all is right, and PyTorch's versions differ.
  static at::Tensor off_the_limit(const at::Tensor& pairs) {
    return at::where(pairs.abs() == kLimit, pairs / 2, pairs);
  }
  const Package& package() const { return Package::for_device("activation", GetParam().device); }
  static at::Tensor halved(const at::Tensor& pairs) {
    auto shape = pairs.sizes().vec();
    shape.back() /= 2;
    return at::full(shape, std::nan(""), pairs.options());
  }
  at::Tensor ours(const at::Tensor& pairs, double alpha = kAlpha, double limit = kLimit) const {
    at::Tensor out = halved(pairs);
    package()("swigluoai_and_mul", out, pairs, alpha, limit);
    return out;
  }
  at::Tensor gradient(const at::Tensor& grad_out, const at::Tensor& pairs) const {
    at::Tensor grad = at::full(pairs.sizes(), std::nan(""), pairs.options());
    package()("swigluoai_and_mul_backward", grad, grad_out, pairs, kAlpha, kLimit);
    return grad;
  }
  static at::Tensor autograd(const at::Tensor& grad_out, const at::Tensor& pairs,
                             at::ScalarType dtype) {
    const at::Tensor leaf = pairs.detach().to(dtype).clone().set_requires_grad(true);
    eager(leaf).backward(grad_out.to(dtype));
    return leaf.grad();
  }
};

TEST_P(Swigluoai, HasTheBitsOfTheModelsStepsOnEvery16BitGate) {
  if (GetParam().dtype == at::kFloat) {
    return;
  }
  const at::Tensor bits = at::arange(65536, at::kInt).to(at::kShort);
  const auto values = [&](const at::Tensor& of) {
    return of.view(GetParam().dtype).to(GetParam().device);
  };
  const at::Tensor gates = values(bits), ups = values(bits.index({at::randperm(65536)}));
  const at::Tensor pairs = at::stack({gates, ups}, -1).flatten();
  // ATen's vectors of exp round differently in places on the CPU.
  const int64_t allowed = GetParam().device == at::kCUDA ? 0 : 40;
  EXPECT_LE(count_different(ours(pairs), eager(pairs)), allowed);
  EXPECT_LE(count_different(ours(pairs, 0.7, 2.3), eager(pairs, 0.7, 2.3)), allowed);
}

TEST_P(Swigluoai, IsNoWorseThanTwiceTheModelsStepsOverEveryTail) {
  for (int64_t columns = 1; columns < 80; ++columns) {
    for (const int64_t rows : {1, 3}) {
      const at::Tensor pairs = off_the_limit(random({rows, 2 * columns}));
      const at::Tensor grad_out = random({rows, columns});
      const at::Tensor exact = eager(pairs.to(at::kDouble));
      EXPECT_LE(testing::largest_error(ours(pairs), exact),
                2 * testing::largest_error(eager(pairs), exact) + 1e-6)
          << columns;
      const at::Tensor slope = autograd(grad_out, pairs, at::kDouble);
      EXPECT_LE(
          testing::largest_error(gradient(grad_out, pairs), slope),
          2 * testing::largest_error(autograd(grad_out, pairs, GetParam().dtype), slope) + 1e-5)
          << columns;
    }
  }
}

TEST_P(Swigluoai, AcceptsAnyLayoutOfRows) {
  const at::Tensor wide = random({6, 5, 7, 80}), grads = random({6, 5, 7, 48});
  using Views = std::tuple<at::Tensor, at::Tensor>;
  for (const auto& [pairs, grad_out] :
       {Views{wide.slice(-1, 0, 64), grads.slice(-1, 0, 32)},
        Views{wide.slice(-1, 3, 67), grads.slice(-1, 1, 33)},
        Views{wide.slice(-1, 0, 64).transpose(0, 2), grads.slice(-1, 0, 32).transpose(0, 2)},
        Views{wide.slice(1, 0, 5, 2), grads.slice(1, 0, 5, 2).slice(-1, 0, 40)},
        Views{wide.slice(0, 0, 1).expand({6, 5, 7, 80}), grads.slice(-1, 8, 48)}}) {
    EXPECT_TRUE(is_same_bits(ours(pairs), ours(pairs.contiguous()))) << pairs.strides();
    EXPECT_TRUE(is_same_bits(gradient(grad_out, pairs),
                             gradient(grad_out.contiguous(), pairs.contiguous())))
        << pairs.strides();
  }
  at::Tensor target = at::zeros({7, 100}, wide.options());
  const at::Tensor pairs = random({7, 80});
  package()("swigluoai_and_mul", target.slice(-1, 5, 45), pairs, kAlpha, kLimit);
  EXPECT_TRUE(is_same_bits(target.slice(-1, 5, 45), ours(pairs)));
  EXPECT_EQ(target.slice(-1, 45).abs().sum().item<double>(), 0);
}

TEST_P(Swigluoai, CarriesNanAndStopsAtTheLimitsAsAutogradDoes) {
  const double nan = std::nan(""), inf = HUGE_VAL;
  const at::Tensor pairs = at::tensor({nan,  1.0, 1.0,    nan,  7.0, 7.0,  7.5,   -7.5, inf,  -inf,
                                       -inf, inf, -200.0, -7.0, 0.0, -1.0, -88.0, 3.0,  -0.0, 0.5},
                                      at::kDouble)
                               .to(GetParam().dtype)
                               .to(GetParam().device);
  const at::Tensor grad_out = at::ones({10}, pairs.options());
  EXPECT_TRUE(at::equal(ours(pairs).isnan(), eager(pairs).isnan()));
  const at::Tensor got = gradient(grad_out, off_the_limit(pairs));
  const at::Tensor expected = autograd(grad_out, off_the_limit(pairs), GetParam().dtype);
  EXPECT_TRUE(at::allclose(got, expected, 0.01, 0.05, /*equal_nan=*/true)) << got << expected;
  EXPECT_EQ(got.isnan().sum().item<int64_t>(), 3);  // of 20
}

TEST_P(Swigluoai, WritesTheGradientOverItsInputAndDoesNothingWithoutElements) {
  at::Tensor pairs = random({9, 576});
  const at::Tensor grad_out = random({9, 288}), expected = gradient(grad_out, pairs);
  package()("swigluoai_and_mul_backward", pairs, grad_out, pairs, kAlpha, kLimit);
  EXPECT_TRUE(is_same_bits(pairs, expected));
  EXPECT_EQ(ours(random({0, 8})).numel(), 0);
  EXPECT_EQ(ours(random({3, 0})).numel(), 0);
  EXPECT_EQ(gradient(random({0, 4}), random({0, 8})).numel(), 0);
}

TEST_P(Swigluoai, GivesTheSameBitsEveryTime) {
  const at::Tensor pairs = random({64, 3072}), grad_out = random({64, 1536});
  const at::Tensor out = ours(pairs), grad = gradient(grad_out, pairs);
  for (int repeat = 0; repeat < (is_small_run() ? 3 : 250); ++repeat) {
    ASSERT_TRUE(is_same_bits(ours(pairs), out));
    ASSERT_TRUE(is_same_bits(gradient(grad_out, pairs), grad));
  }
}

TEST_P(Swigluoai, NamesTheArgumentThatIsWrong) {
  const at::Tensor x = random({2, 64});
  const auto message = [&](const char* op, auto... arguments) {
    return testing::message_of([&] { package()(op, arguments...); });
  };
  EXPECT_THAT(message("swigluoai_and_mul", x, x, kAlpha, kLimit),
              ::testing::HasSubstr("[swigluoai_and_mul] out: expected shape [2, 64] (that of "
                                   "input) with the last dimension halved, got [2, 64]"));
  EXPECT_THAT(message("swigluoai_and_mul", random({2, 32}), x, kAlpha, -1.0),
              ::testing::HasSubstr("[swigluoai_and_mul] limit: expected a number of at least 0"));
  EXPECT_THAT(message("swigluoai_and_mul", random({2, 32}), x, kAlpha, std::nan("")),
              ::testing::HasSubstr("[swigluoai_and_mul] limit: expected a number of at least 0"));
  EXPECT_THAT(
      message("swigluoai_and_mul_backward", x, x, x, kAlpha, kLimit),
      ::testing::HasSubstr("[swigluoai_and_mul_backward] grad_out: expected shape [2, 64]"));
  EXPECT_THAT(
      message("swigluoai_and_mul_backward", random({2, 32}), random({2, 32}), x, kAlpha, kLimit),
      ::testing::HasSubstr("[swigluoai_and_mul_backward] grad_input: expected shape [2, 64]"));
  EXPECT_THAT(message("swigluoai_and_mul", random({2, 32}), x.to(at::kInt), kAlpha, kLimit),
              ::testing::HasSubstr("[swigluoai_and_mul] input: expected float32, bfloat16"));
}

TEST_P(Swigluoai, AcceptsMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta), out = random({2, 32}).to(at::kMeta);
  package()("swigluoai_and_mul", out, x, kAlpha, kLimit);
  package()("swigluoai_and_mul_backward", x, out, x, kAlpha, kLimit);
  EXPECT_THROW(package()("swigluoai_and_mul", x, x, kAlpha, kLimit), std::exception);
}

TEST_P(Swigluoai, RunsInACapturedGraph) {
#ifdef GRAFT_WITH_CUDA
  if (GetParam().device != at::kCUDA) {
    return;
  }
  const at::Tensor pairs = random({64, 2048}), grad_out = random({64, 1024});
  const at::Tensor expected = ours(pairs), expected_grad = gradient(grad_out, pairs);
  const at::Tensor out = halved(pairs), grad = at::zeros_like(pairs);
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] {
    package()("swigluoai_and_mul", out, pairs, kAlpha, kLimit);
    package()("swigluoai_and_mul_backward", grad, grad_out, pairs, kAlpha, kLimit);
  });
  EXPECT_TRUE(out.isnan().all().item<bool>()) << "capture must not run the kernel";
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(out, expected));
  EXPECT_TRUE(is_same_bits(grad, expected_grad));
#endif
}

// Nine gigabytes of pairs; a reduced run checks the comparison itself. An odd count, so that there is a tail.
TEST_P(Swigluoai, ReachesBeyondTwoToTheThirtyFirstElementsOnCuda) {
  if (GetParam().device != at::kCUDA || GetParam().dtype == at::kFloat) {
    return;
  }
  const int64_t pairs_count = is_small_run() ? 4099 : (int64_t{1} << 31) + 4099;
  const at::Tensor pairs =
      at::full({2 * pairs_count}, 0.5, at::TensorOptions(at::kCUDA).dtype(GetParam().dtype));
  const at::Tensor out = ours(pairs);
  EXPECT_TRUE(out.eq(eager(pairs.slice(0, 0, 2))).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Devices, Swigluoai, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::activation

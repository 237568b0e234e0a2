// The gated MLP's backward beside autograd through eager steps and in float64, one suite for all devices and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::mlp {
namespace {

using testing::is_same_bits;
using testing::largest_error;
using testing::Package;
using Tensors = std::vector<at::Tensor>;

struct Case {
  at::DeviceType device;
  at::ScalarType dtype;
};

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.device == at::kCUDA ? "cuda_" : "cpu_") +
         c10::toString(info.param.dtype);
}

constexpr const char* kNames[] = {"x",         "gate_weight", "up_weight", "down_weight",
                                  "gate_bias", "up_bias",     "down_bias"};

// x, gate, up, down weight, and their biases or none; then the incoming gradient.
struct Inputs {
  Tensors leaves;
  at::Tensor grad_out;

  Inputs to(at::ScalarType dtype) const {
    Inputs other{{}, grad_out.to(dtype)};
    for (const at::Tensor& leaf : leaves) {
      other.leaves.push_back(leaf.to(dtype));
    }
    return other;
  }
};

at::Tensor activate(const at::Tensor& x, int64_t act) {
  return act == 0 ? at::silu(x) : at::gelu(x, act == 1 ? "none" : "tanh");
}

Tensors by_autograd(const Inputs& in, int64_t act) {
  Tensors own;
  for (const at::Tensor& leaf : in.leaves) {
    own.push_back(leaf.detach().clone().set_requires_grad(true));
  }
  const auto bias = [&](size_t i) {
    return own.size() > 4 ? std::optional<at::Tensor>(own[i]) : std::nullopt;
  };
  const at::Tensor gate = at::linear(own[0], own[1], bias(4)),
                   up = at::linear(own[0], own[2], bias(5));
  at::linear(activate(gate, act) * up, own[3], bias(6)).backward(in.grad_out);
  Tensors gradients;
  for (const at::Tensor& leaf : own) {
    gradients.push_back(leaf.grad());
  }
  return gradients;
}

class MlpBackward : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().device == at::kCUDA && !testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(0);
  }

  Inputs random(int64_t rows, int64_t hidden, int64_t inner, bool with_bias) const {
    const auto make = [&](at::IntArrayRef sizes, int64_t depth) {
      return (at::randn(sizes) / std::sqrt(static_cast<double>(depth)))
          .to(GetParam().device, GetParam().dtype);
    };
    Inputs in{{make({rows, hidden}, 1), make({inner, hidden}, hidden),
               make({inner, hidden}, hidden), make({hidden, inner}, inner)},
              make({rows, hidden}, 1)};
    if (with_bias) {
      in.leaves.insert(in.leaves.end(), {make({inner}, 1), make({inner}, 1), make({hidden}, 1)});
    }
    return in;
  }

  Tensors ours(const Inputs& in, int64_t act, bool weights = true) const {
    const auto bias = [&](size_t i) {
      return in.leaves.size() > 4 ? c10::IValue(in.leaves[i]) : c10::IValue();
    };
    const auto stack = Package::for_device("mlp", GetParam().device)(
        "mlp_backward", in.grad_out, in.leaves[0], in.leaves[1], in.leaves[2], in.leaves[3], act,
        bias(4), bias(5), bias(6), weights);
    Tensors gradients;
    for (const c10::IValue& value : stack) {
      gradients.push_back(value.toTensor());
    }
    return gradients;
  }
};

TEST_P(MlpBackward, IsNoWorseThanTwiceEager) {
  for (const auto& [hidden, inner] : {std::pair{1, 1}, {5, 3}, {64, 160}, {576, 1536}, {257, 33}}) {
    for (const int64_t rows : {1, 3, 17, 600, 1100}) {
      for (const int64_t act : {0, 1, 2}) {
        const Inputs in = random(rows, hidden, inner, rows % 2 == 1);
        const Tensors own = ours(in, act), eager = by_autograd(in, act),
                      exact = by_autograd(in.to(at::kDouble), act);
        for (size_t i = 0; i < eager.size(); ++i) {
          ASSERT_EQ(own[i].sizes(), eager[i].sizes()) << kNames[i];
          ASSERT_EQ(own[i].scalar_type(), eager[i].scalar_type()) << kNames[i];
          // The order and the roundings of float32 and 16-bit sums, over rows for the weights, are not eager's: one
          // draw of such an error may be larger than two of another.
          const double unit = GetParam().dtype == at::kFloat  ? 0x1p-21
                              : GetParam().dtype == at::kHalf ? 0x1p-11
                                                              : 0x1p-8;
          const double terms = i == 0 ? 1 : std::sqrt(static_cast<double>(rows));
          EXPECT_LE(largest_error(own[i], exact[i]),
                    2 * largest_error(eager[i], exact[i]) +
                        unit * (exact[i].abs().max().item<double>() + terms))
              << kNames[i] << ", act " << act << ", rows " << rows << ", hidden " << hidden
              << ", inner " << inner;
        }
      }
    }
    if (testing::is_small_run() && hidden == 64) {
      break;
    }
  }
}

TEST_P(MlpBackward, MakesNoGradientThatNobodyWants) {
  const Inputs in = random(7, 64, 48, true);
  const Tensors all = ours(in, 0), one = ours(in, 0, /*weights=*/false);
  EXPECT_TRUE(is_same_bits(one[0], all[0]));
  for (size_t i = 1; i < 7; ++i) {
    EXPECT_EQ(one[i].numel(), 0) << kNames[i];
  }
  const Tensors without_bias = ours(random(7, 64, 48, false), 0);
  EXPECT_EQ(without_bias[3].sizes(), (at::IntArrayRef{64, 48}));
  EXPECT_EQ(without_bias[4].numel(), 0);
}

TEST_P(MlpBackward, GivesZerosForTheWeightsWithoutRows) {
  const Tensors own = ours(random(0, 64, 48, true), 0);
  EXPECT_EQ(own[0].sizes(), (at::IntArrayRef{0, 64}));
  for (size_t i = 1; i < 7; ++i) {
    EXPECT_EQ(own[i].abs().sum().item<double>(), 0) << kNames[i];
  }
}

TEST_P(MlpBackward, TakesAnyLeadingDimensionsAndGivesTheSameBitsEveryTime) {
  Inputs in = random(30, 64, 48, true);
  const Tensors flat = ours(in, 2);
  in.leaves[0] = in.leaves[0].view({2, 15, 64});
  in.grad_out = in.grad_out.view({2, 15, 64});
  const Tensors nested = ours(in, 2);
  EXPECT_EQ(nested[0].sizes(), in.leaves[0].sizes());
  EXPECT_TRUE(is_same_bits(nested[0].view({30, 64}), flat[0]));
  for (size_t i = 1; i < 7; ++i) {
    EXPECT_TRUE(is_same_bits(nested[i], flat[i])) << kNames[i];
  }
}

TEST_P(MlpBackward, RefusalNamesTheArgument) {
  Inputs in = random(2, 8, 6, false);
  in.grad_out = in.grad_out.narrow(0, 0, 1);
  try {
    ours(in, 0);
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(),
                ::testing::HasSubstr("[mlp_backward] grad_out: expected shape [2, 8]"));
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const at::DeviceType device : {at::kCPU, at::kCUDA}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      all.push_back({device, dtype});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Devices, MlpBackward, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace graft_kernels::mlp

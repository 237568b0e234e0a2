// The gated MLP's backward beside autograd through eager steps and in float64, one suite for all devices and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::mlp {
namespace {

using testing::is_same_bits;
using testing::largest_error;
using testing::Package;
using Tensors = std::vector<at::Tensor>;

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

// out, gate and up.
Tensors by_steps(const Inputs& in, int64_t act) {
  const auto product = [&](const at::Tensor& x, size_t i) {
    return at::linear(
        x, in.leaves[i],
        in.leaves.size() > 4 ? std::optional<at::Tensor>(in.leaves[i + 3]) : std::nullopt);
  };
  const at::Tensor gate = product(in.leaves[0], 1), up = product(in.leaves[0], 2);
  return {product(activate(gate, act) * up, 3), gate, up};
}

class MlpBackward : public testing::OnEachDevice {
 protected:
  static double unit() {
    return GetParam().dtype == at::kFloat  ? 0x1p-21
           : GetParam().dtype == at::kHalf ? 0x1p-11
                                           : 0x1p-8;
  }

  // The order and the roundings of float32 and 16-bit sums, over rows for the weights, are not eager's: one draw of such
  // an error may be larger than two of another.
  static void expect_close(const Tensors& own, const Tensors& eager, const Tensors& exact,
                           int64_t rows) {
    for (size_t i = 0; i < eager.size(); ++i) {
      ASSERT_EQ(own[i].sizes(), eager[i].sizes()) << kNames[i];
      ASSERT_EQ(own[i].scalar_type(), eager[i].scalar_type()) << kNames[i];
      const double terms = i == 0 ? 1 : std::sqrt(static_cast<double>(rows));
      EXPECT_LE(largest_error(own[i], exact[i]),
                2 * largest_error(eager[i], exact[i]) +
                    unit() * (exact[i].abs().max().item<double>() + terms))
          << kNames[i];
    }
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

  // What the forward that trains gives; an odd number of rows has biases.
  void expect_trains_close(int64_t rows, int64_t hidden, int64_t inner, int64_t act) const {
    const Inputs in = random(rows, hidden, inner, rows % 2 == 1);
    const Tensors own = trained(in, act), eager = by_steps(in, act),
                  exact = by_steps(in.to(at::kDouble), act);
    for (size_t i = 0; i < eager.size(); ++i) {
      ASSERT_EQ(own[i].sizes(), eager[i].sizes());
      EXPECT_LE(largest_error(own[i], exact[i]), 2 * largest_error(eager[i], exact[i]) +
                                                     unit() * exact[i].abs().max().item<double>())
          << "out, gate, up: " << i << ", act " << act << ", rows " << rows;
    }
  }

  // From what was kept and from what is made again; an odd number of rows has biases.
  void expect_gradients_close(int64_t rows, int64_t hidden, int64_t inner, int64_t act) const {
    const Inputs in = random(rows, hidden, inner, rows % 2 == 1);
    const Tensors eager = by_autograd(in, act), exact = by_autograd(in.to(at::kDouble), act);
    for (const bool kept : {false, true}) {
      SCOPED_TRACE(::testing::Message()
                   << (kept ? "kept" : "made again") << ", act " << act << ", rows " << rows
                   << ", hidden " << hidden << ", inner " << inner);
      expect_close(kept ? from_kept(in, trained(in, act), act) : ours(in, act), eager, exact, rows);
    }
  }

  static c10::IValue bias_of(const Inputs& in, size_t i) {
    return in.leaves.size() > 4 ? c10::IValue(in.leaves[i]) : c10::IValue();
  }
  static Tensors tensors(const std::vector<c10::IValue>& stack) {
    Tensors all;
    for (const c10::IValue& value : stack) {
      all.push_back(value.toTensor());
    }
    return all;
  }

  Tensors ours(const Inputs& in, int64_t act, bool weights = true) const {
    return tensors(Package::for_device("mlp", GetParam().device)(
        "mlp_backward", in.grad_out, in.leaves[0], in.leaves[1], in.leaves[2], in.leaves[3], act,
        bias_of(in, 4), bias_of(in, 5), bias_of(in, 6), weights));
  }
  // out, gate and up.
  Tensors trained(const Inputs& in, int64_t act) const {
    return tensors(Package::for_device("mlp", GetParam().device)(
        "mlp_train", in.leaves[0], in.leaves[1], in.leaves[2], in.leaves[3], act, bias_of(in, 4),
        bias_of(in, 5), bias_of(in, 6)));
  }
  // The gradients from what the forward kept.
  Tensors from_kept(const Inputs& in, const Tensors& kept, int64_t act, bool weights = true) const {
    return tensors(Package::for_device("mlp", GetParam().device)(
        "mlp_train_backward", in.grad_out, in.leaves[0], kept[1], kept[2], in.leaves[1],
        in.leaves[2], in.leaves[3], act, bias_of(in, 4), bias_of(in, 5), bias_of(in, 6), weights));
  }
};

TEST_P(MlpBackward, TheForwardThatTrainsIsNoWorseThanTwiceEager) {
  for (const auto& [rows, hidden, inner] : {std::tuple{1, 5, 3}, {17, 64, 160}, {600, 257, 33}}) {
    for (const int64_t act : {0, 1, 2}) {
      expect_trains_close(rows, hidden, inner, act);
    }
  }
}

// Shapes of Hopper's tiles: one row of clusters, one step, rows of gate off 16 bytes.
TEST_P(MlpBackward, TheForwardThatTrainsIsNoWorseThanTwiceEagerOverManyTiles) {
  for (const auto& [rows, hidden, inner] :
       {std::tuple{513, 136, 4104}, {200, 520, 7700}, {1026, 8, 2568}, {2049, 1032, 1544}}) {
    const bool tiles = GetParam().device == at::kCUDA;  // elsewhere a piece says as much
    for (const int64_t act : {0, 1, 2}) {
      expect_trains_close(tiles ? rows : rows / 4, hidden, tiles ? inner : inner / 8, act);
    }
  }
}

TEST_P(MlpBackward, WhatWasKeptStaysAndNeedNotBeAligned) {
  const Inputs in = random(24, 64, 48, true);
  Tensors kept = trained(in, 0);
  const Tensors first = from_kept(in, kept, 0),
                before = {kept[0], kept[1].clone(), kept[2].clone()};
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_TRUE(is_same_bits(kept[i], before[i]));
    const at::Tensor room = at::empty({kept[i].numel() + 1}, kept[i].options());
    kept[i] = room.narrow(0, 1, kept[i].numel()).view(kept[i].sizes()).copy_(kept[i]);
  }
  const Tensors second = from_kept(in, kept, 0), one = from_kept(in, kept, 0, /*weights=*/false);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(is_same_bits(first[i], second[i])) << kNames[i];
    EXPECT_EQ(one[i].numel(), i == 0 ? first[0].numel() : 0);
  }
}

TEST_P(MlpBackward, IsNoWorseThanTwiceEager) {
  for (const auto& [hidden, inner] : {std::pair{1, 1}, {5, 3}, {64, 160}, {576, 1536}, {257, 33}}) {
    for (const int64_t rows : {1, 3, 17, 600, 1100}) {
      for (const int64_t act : {0, 1, 2}) {
        expect_gradients_close(rows, hidden, inner, act);
      }
    }
    if (testing::is_small_run() && hidden == 64) {
      break;
    }
  }
}

// Shapes of Hopper's tiles: odd numbers of rows, one row of clusters, one short step, boxes that end within a tile; the
// last has rows that the copy engine does not take.
TEST_P(MlpBackward, IsNoWorseThanTwiceEagerOverManyTiles) {
  for (const auto& [rows, hidden, inner] : {std::tuple{513, 136, 5128},
                                            {200, 520, 15368},
                                            {1026, 8, 3080},
                                            {2049, 1032, 1544},
                                            {512, 40, 7684}}) {
    const bool tiles = GetParam().device == at::kCUDA;  // elsewhere a piece says as much
    for (const int64_t act : {0, 1, 2}) {
      expect_gradients_close(tiles ? rows : rows / 4, hidden, tiles ? inner : inner / 8, act);
    }
  }
}

TEST_P(MlpBackward, ManyTilesGiveTheSameBitsEveryTimeAndInACapturedGraph) {
#ifdef GRAFT_WITH_CUDA
  if (GetParam().device != at::kCUDA) {
    return;
  }
  const Inputs in = random(2049, 520, 4104, true);
  const Tensors kept = trained(in, 0), first = from_kept(in, kept, 0);
  const auto expect_first = [&](const Tensors& own) {
    for (size_t i = 0; i < first.size(); ++i) {
      ASSERT_TRUE(is_same_bits(own[i], first[i])) << kNames[i];
    }
  };
  for (int run = 0; run < (testing::is_small_run() ? 2 : 30); ++run) {
    expect_first(from_kept(in, kept, 0));
  }
  const testing::CurrentStream stream;
  Tensors captured;
  const testing::CapturedGraph graph(stream, [&] { captured = from_kept(in, kept, 0); });
  for (int replay = 0; replay < 3; ++replay) {
    graph.launch();
    stream.synchronize();
    expect_first(captured);
  }
#endif
}

TEST_P(MlpBackward, NanAndInfinityStayInTheirRows) {
  const bool tiles = GetParam().device == at::kCUDA;
  Inputs in = random(tiles ? 513 : 20, 64, tiles ? 5128 : 48, false);
  const Tensors kept = trained(in, 0), plain = from_kept(in, kept, 0, /*weights=*/false);
  in.grad_out[3][5] = std::nan("");
  kept[1][7][11] = INFINITY;
  const at::Tensor own = from_kept(in, kept, 0, /*weights=*/false)[0];
  EXPECT_TRUE(own[3].isnan().all().item<bool>());
  EXPECT_TRUE(own[7].isfinite().logical_not().any().item<bool>());
  for (const int64_t row : {0, 2, 4, 6, 8, 19}) {
    EXPECT_TRUE(is_same_bits(own[row], plain[0][row])) << row;
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

TEST_P(MlpBackward, RefusalOfWhatWasKeptNamesTheArgument) {
  const Inputs in = random(2, 8, 6, false);
  Tensors kept = trained(in, 0);
  kept[2] = kept[2].narrow(1, 0, 5);
  try {
    from_kept(in, kept, 0);
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(),
                ::testing::HasSubstr("[mlp_train_backward] up: expected 2 rows of 6"));
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

INSTANTIATE_TEST_SUITE_P(Devices, MlpBackward, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::mlp

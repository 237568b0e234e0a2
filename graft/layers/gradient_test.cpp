// Training with kernels: our packages' gradients beside the references', and what autograd promises.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/module.h>

#include "graft/core/error.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::layers {
namespace {

using ::testing::HasSubstr;

constexpr double kEps = 1e-5;

std::string test_norms(const std::string& layer) {
  return std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/norms:" + layer;
}

KernelizeReport kernelize_with(torch::nn::Module& model, const std::string& layer) {
  KernelConfig config;
  config.inherit_mapping = false;
  config.kernel_mapping.set("RMSNorm", {"cpu"},
                            {{Mode::kFallback, kernel::parse_layer_reference(test_norms(layer))}});
  return kernelize(model, {.config = config});
}

// A small block of everything that has a backward.
class Block : public torch::nn::Module {
 public:
  Block(RmsNormVariant variant, ActivationKind kind, at::ScalarType dtype)
      : norm(*this, {variant}, "norm"), gated(*this, {kind}, "gated"), act(*this, {kind}, "act") {
    weight = register_parameter("weight", (at::rand({32}) + 0.5).to(dtype));
  }

  // Gradients of x, residual and the weight.
  std::vector<at::Tensor> gradients(const at::Tensor& x, const at::Tensor& residual,
                                    const RotaryTables& tables) {
    const std::vector<at::Tensor> leaves = {x.detach().requires_grad_(),
                                            residual.detach().requires_grad_(), weight};
    const auto [normed, sum] = norm->add_forward(leaves[0], leaves[1], weight, kEps);
    const at::Tensor again = norm->forward(sum, weight, kEps);
    const at::Tensor mixed = gated->forward(normed, again) + act->forward(sum);
    const at::Tensor heads = mixed.view({x.size(0), x.size(1), 2, 16});
    const auto [query, key] = rotary->forward(heads, heads.narrow(2, 0, 1), tables);
    const at::Tensor loss = (query * query).sum() + (key * 0.5).sum() + sum.sum();
    return torch::autograd::grad({loss}, leaves);
  }

  at::Tensor weight;
  Slot<RmsNorm> norm;
  Slot<GatedActivation> gated;
  Slot<Activation> act;
  Slot<Rotary> rotary{*this, {}, "rotary"};
};

RotaryTables tables_of(int64_t length, int64_t dim, at::ScalarType dtype) {
  const at::Tensor angles =
      at::arange(length * dim / 2).view({1, length, dim / 2}).to(at::kDouble) * 0.1;
  const at::Tensor cos = angles.cos(), sin = angles.sin();
  return {at::cat({cos, cos}, -1).to(dtype), at::cat({sin, sin}, -1).to(dtype),
          at::cat({sin.neg(), sin}, -1).to(dtype)};
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

TEST(Gradients, OfABlockWithOurKernelsAreAsGoodAsThoseOfItsReference) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto variant : {RmsNormVariant::kCastBeforeWeight, RmsNormVariant::kCastAfterWeight,
                               RmsNormVariant::kFloatWeight, RmsNormVariant::kZeroCentered}) {
      at::manual_seed(3);
      Block block(variant, ActivationKind::kSilu, dtype),
          exact(variant, ActivationKind::kSilu, dtype);
      exact.weight.set_data(block.weight.detach().to(at::kDouble));
      const at::Tensor x = at::randn({2, 5, 32}).to(dtype),
                       residual = at::randn({2, 5, 32}).to(dtype);
      const auto off = block.gradients(x, residual, tables_of(5, 16, dtype));
      const auto right = exact.gradients(x.to(at::kDouble), residual.to(at::kDouble),
                                         tables_of(5, 16, at::kDouble));
      const auto report = kernelize(block, {.dtype = dtype, .strict = true});
      EXPECT_EQ(report.mode, "training");
      const auto on = block.gradients(x, residual, tables_of(5, 16, dtype));
      for (size_t i = 0; i < on.size(); ++i) {
        EXPECT_EQ(on[i].scalar_type(), dtype);
        // Two roundings of the largest value may fall either way.
        const double unit = dtype == at::kFloat ? 0x1p-23 : dtype == at::kHalf ? 0x1p-10 : 0x1p-7;
        EXPECT_LE(distance(on[i], right[i]),
                  2 * distance(off[i], right[i]) + unit * right[i].abs().max().item<double>())
            << toString(dtype) << " variant " << static_cast<int>(variant) << " input " << i;
      }
    }
  }
}

TEST(Gradients, FlowThroughEveryActivation) {
  for (const auto kind : {ActivationKind::kGelu, ActivationKind::kGeluTanh}) {
    Block block(RmsNormVariant::kCastBeforeWeight, kind, at::kFloat);
    const at::Tensor x = at::randn({1, 3, 32}), residual = at::randn({1, 3, 32});
    const auto off = block.gradients(x, residual, tables_of(3, 16, at::kFloat));
    kernelize(block, {.strict = true});
    const auto on = block.gradients(x, residual, tables_of(3, 16, at::kFloat));
    for (size_t i = 0; i < on.size(); ++i) {
      EXPECT_LE(distance(on[i], off[i]), 1e-5 * off[i].abs().max().item<double>());
    }
  }
}

TEST(Gradients, ASecondDerivativeIsRefusedAndNotCut) {
  Block block(RmsNormVariant::kCastBeforeWeight, ActivationKind::kSilu, at::kFloat);
  kernelize(block, {.strict = true});
  const at::Tensor x = at::randn({2, 32}).requires_grad_();
  const at::Tensor out = block.norm->forward(x, block.weight, kEps);
  try {
    torch::autograd::grad({out.sum()}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true);
    FAIL() << "expected IncompatibleError";
  } catch (const IncompatibleError& error) {
    EXPECT_EQ(error.code(), "layers.gradient.second-derivative");
    EXPECT_THAT(error.what(), HasSubstr("unkernelize"));
  }
}

TEST(Gradients, AGraphIsFreedWithItsOutputsAndCanBeWalkedTwiceWhenKept) {
  Block block(RmsNormVariant::kCastBeforeWeight, ActivationKind::kSilu, at::kFloat);
  kernelize(block, {.strict = true});
  const at::Tensor x = at::randn({2, 32}).requires_grad_();
  c10::weak_intrusive_ptr<c10::TensorImpl> watched(x.getIntrusivePtr());
  {
    auto [out, sum] = block.norm->add_forward(x, at::randn({2, 32}), block.weight, kEps);
    watched = c10::weak_intrusive_ptr<c10::TensorImpl>(sum.getIntrusivePtr());
    const at::Tensor loss = out.sum();
    const auto first = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true);
    const auto second = torch::autograd::grad({loss}, {x});
    EXPECT_TRUE(at::equal(first[0], second[0]));
    EXPECT_THROW(torch::autograd::grad({loss}, {x}), c10::Error) << "the graph was freed";
  }
  EXPECT_TRUE(watched.expired());
}

TEST(Gradients, AnInputChangedAfterwardsIsNoticed) {
  Block block(RmsNormVariant::kCastBeforeWeight, ActivationKind::kSilu, at::kFloat);
  kernelize(block, {.strict = true});
  const at::Tensor leaf = at::randn({2, 32}).requires_grad_();
  at::Tensor x = leaf * 2;
  const at::Tensor out = block.norm->forward(x, block.weight, kEps);
  x.add_(1.0);
  EXPECT_THROW(torch::autograd::grad({out.sum()}, {leaf}), c10::Error);
}

TEST(Gradients, WhatNeedsNoneGetsNoGraph) {
  Block block(RmsNormVariant::kCastBeforeWeight, ActivationKind::kSilu, at::kFloat);
  block.weight.requires_grad_(false);
  kernelize(block, {.strict = true});
  EXPECT_FALSE(block.norm->forward(at::randn({2, 32}), block.weight, kEps).requires_grad());
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(
      block.norm->forward(at::randn({2, 32}).requires_grad_(), block.weight, kEps).requires_grad());
}

class NormModule : public torch::nn::Module {
 public:
  NormModule() { weight = register_parameter("weight", at::rand({64}) + 0.5); }
  Slot<RmsNorm> norm{*this, {}};
  at::Tensor weight;
};

std::string refusal(const std::string& layer) {
  NormModule model;
  const auto report = kernelize_with(model, layer);
  const auto& considered = report.slots.at(0).considered.back();
  return report.slots[0].chosen.empty() ? considered.outcome + ": " + considered.reason : "";
}

TEST(Gradients, AWrongBackwardIsRefusedByTheGuard) {
  EXPECT_EQ(refusal("WithBackward"), "");
  EXPECT_THAT(refusal("WrongBackward"),
              ::testing::AllOf(HasSubstr("layers.guard.refused"), HasSubstr("backward [1, 64]")));
}

TEST(Gradients, ABackwardThatIsOnlyClaimedIsRefused) {
  EXPECT_THAT(refusal("ClaimsBackward"),
              ::testing::AllOf(HasSubstr("layers.adapter.signature"), HasSubstr("`backward`")));
}

}  // namespace
}  // namespace graft::layers

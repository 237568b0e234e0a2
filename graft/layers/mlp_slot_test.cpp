// A slot that does the work of others: the gated MLP.

#include <cstdlib>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include "graft/core/error.h"
#include "graft/io/gguf.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::layers {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

[[maybe_unused]] const int kCanaryIsOff = setenv("GRAFT_CANARY", "off", 1);
[[maybe_unused]] const int kOffline = setenv("HF_HUB_OFFLINE", "1", 1);

class Projection : public torch::nn::Module {
 public:
  Projection(int64_t columns, int64_t rows) {
    weight = register_parameter("weight", at::randn({rows, columns}) * 0.2, false);
  }
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight, {}); }

  at::Tensor weight;

 private:
  Slot<Linear> kernel_{*this, {}};
};

// As nn::GatedMlp, which this room does not see.
class GatedMlp : public torch::nn::Module {
 public:
  explicit GatedMlp(ActivationKind kind = ActivationKind::kSilu)
      : slot(*this, {kind}), act_(*this, {kind}, "act_and_mul") {
    gate_ = register_module("gate_proj", std::make_shared<Projection>(64, 96));
    up_ = register_module("up_proj", std::make_shared<Projection>(64, 96));
    down_ = register_module("down_proj", std::make_shared<Projection>(96, 64));
  }
  at::Tensor forward(const at::Tensor& x) const {
    if (slot.module().swapped()) {
      return slot->forward(x, {gate_->weight, up_->weight, down_->weight, {}, {}, {}});
    }
    return down_->forward(act_->forward(gate_->forward(x), up_->forward(x)));
  }

  Slot<Mlp> slot;

 private:
  Slot<GatedActivation> act_;
  std::shared_ptr<Projection> gate_, up_, down_;
};

// Two MLPs and a projection that is inside none.
class Model : public torch::nn::Module {
 public:
  explicit Model(ActivationKind kind = ActivationKind::kSilu) {
    first = register_module("first", std::make_shared<GatedMlp>(kind));
    first_too = register_module("first_too", std::make_shared<GatedMlp>(kind));
    head = register_module("head", std::make_shared<Projection>(64, 8));
    eval();
  }
  at::Tensor forward(const at::Tensor& x) const {
    return head->forward(first_too->forward(first->forward(x)));
  }

  std::shared_ptr<GatedMlp> first, first_too;
  std::shared_ptr<Projection> head;
};

std::string test_mlps(const std::string& layer) {
  return std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/mlps:" + layer;
}

// All else from the default mapping.
KernelConfig mlp_config(const std::string& kernel, const std::string& name = "SwiGLUMLP",
                        Mode mode = Mode::kFallback) {
  KernelConfig config;
  config.kernel_mapping.set(name, {"cpu"}, {{mode, kernel::parse_layer_reference(kernel)}});
  return config;
}

const SlotTrace& trace_of(const KernelizeReport& report, const std::string& slot) {
  for (const auto& trace : report.slots) {
    if (trace.slot == slot) {
      return trace;
    }
  }
  throw std::runtime_error("no slot " + slot);
}

TEST(MlpSlot, AKernelDoesTheWorkOfTheSlotsInsideAndTheTraceSaysSo) {
  const at::NoGradGuard no_grad;
  Model model;
  const at::Tensor x = at::randn({5, 64});
  const at::Tensor before = model.forward(x);
  const auto report =
      kernelize(model, {.config = mlp_config("graft-kernels/mlp:SwiGLUMLP"), .strict = true});
  ASSERT_EQ(report.slots.size(), 11U);
  const auto& outer = trace_of(report, "first");
  EXPECT_EQ(outer.chosen, "graft-kernels/mlp:SwiGLUMLP");
  EXPECT_EQ(outer.numeric_variant, "silu");
  for (const char* name :
       {"first.gate_proj", "first.up_proj", "first.down_proj", "first.act_and_mul"}) {
    const auto& inner = trace_of(report, name);
    EXPECT_EQ(inner.chosen, "") << name;
    EXPECT_EQ(inner.inside, "first") << name;
    ASSERT_EQ(inner.considered.size(), 1U);
    EXPECT_EQ(inner.considered[0].outcome, "layers.kernelize.inside");
    EXPECT_EQ(inner.considered[0].reason,
              "`graft-kernels/mlp:SwiGLUMLP` for first does this slot's work too");
  }
  EXPECT_EQ(trace_of(report, "first_too.up_proj").inside, "first_too");
  EXPECT_EQ(trace_of(report, "head").chosen, "graft-kernels/linear:Linear");
  EXPECT_EQ(report.num_working(), 3);
  EXPECT_THAT(report.to_text(), AllOf(HasSubstr("2 x SwiGLUMLP (silu)"), HasSubstr("6 x Linear"),
                                      HasSubstr("inside graft-kernels/mlp:SwiGLUMLP\n"),
                                      HasSubstr("swapped 3 of 3 slots on cpu"),
                                      Not(HasSubstr("layers.kernelize.inside"))));
  EXPECT_EQ(report.to_json()["slots"][1]["inside"], "first");
  EXPECT_TRUE(at::allclose(model.forward(x), before, 1e-4, 1e-5));
  unkernelize(model);
  EXPECT_TRUE(at::equal(model.forward(x), before));
}

TEST(MlpSlot, WithoutAKernelThePartsServeAndAnswerForThemselves) {
  Model model;
  KernelConfig config;
  config.kernel_mapping.set("SwiGLUMLP", {"cpu"},
                            {{Mode::kFallback, kernel::parse_layer_reference("")}});
  const auto report = kernelize(model, {.config = config, .strict = true});
  EXPECT_EQ(trace_of(report, "first").chosen, "");
  EXPECT_EQ(trace_of(report, "first.gate_proj").chosen, "graft-kernels/linear:Linear");
  EXPECT_EQ(trace_of(report, "first.act_and_mul").chosen, "graft-kernels/activation:SiluAndMul");
  EXPECT_EQ(report.num_working(), 9);
  EXPECT_THAT(report.to_text(),
              AllOf(HasSubstr("its parts, one by one"), HasSubstr("swapped 9 of 9 slots")));
}

TEST(MlpSlot, AKernelThatComputesSomethingElseIsRefusedAndThePartsServe) {
  const at::NoGradGuard no_grad;
  for (const char* layer : {"Swapped", "Relu", "WithoutBias"}) {
    Model model;
    const at::Tensor x = at::randn({5, 64});
    const at::Tensor before = model.forward(x);
    auto config = mlp_config(test_mlps(layer));
    const auto report = kernelize(model, {.config = config});
    const auto& outer = trace_of(report, "first");
    EXPECT_EQ(outer.considered[0].outcome, "layers.guard.refused") << layer;
    EXPECT_THAT(outer.considered[0].reason, HasSubstr("against float64")) << layer;
    EXPECT_NE(outer.chosen, test_mlps(layer));
    EXPECT_TRUE(at::allclose(model.forward(x), before, 1e-4, 1e-5)) << layer;
  }
  Model model;
  EXPECT_EQ(trace_of(kernelize(model, {.config = mlp_config(test_mlps("Right"))}), "first").chosen,
            test_mlps("Right"));
}

TEST(MlpSlot, ARefusedKernelIsAnErrorOfAStrictCall) {
  Model model;
  auto config = mlp_config(test_mlps("Relu"));
  config.inherit_mapping = false;
  try {
    kernelize(model,
              {.config = config,
               .fallback = static_cast<Fallback>(static_cast<unsigned>(Fallback::kAll) -
                                                 static_cast<unsigned>(Fallback::kRefused))});
    FAIL();
  } catch (const IncompatibleError& error) {
    EXPECT_EQ(error.code(), "layers.kernelize.strict");
    EXPECT_THAT(error.what(), HasSubstr("none for 2 of"));
  }
}

TEST(MlpSlot, ServesTheFunctionsThatThePackageHas) {
  const std::pair<ActivationKind, const char*> served[] = {{ActivationKind::kSilu, "SwiGLUMLP"},
                                                           {ActivationKind::kGeluTanh, "GeGLUMLP"},
                                                           {ActivationKind::kGelu, "MLP"}};
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [kind, layer] : served) {
      Model model(kind);
      const std::string kernel = std::string("graft-kernels/mlp:") + layer;
      const auto report = kernelize(model, {.dtype = dtype, .config = mlp_config(kernel, layer)});
      EXPECT_EQ(trace_of(report, "first").chosen, kernel)
          << trace_of(report, "first").considered[0].reason;
    }
  }
  Model model(ActivationKind::kGeluNew);
  const auto report = kernelize(model, {.config = mlp_config("graft-kernels/mlp:MLP", "MLP")});
  EXPECT_EQ(trace_of(report, "first").considered[0].outcome, "layers.adapter.numeric-variant");
  EXPECT_EQ(trace_of(report, "first.up_proj").chosen, "graft-kernels/linear:Linear");
}

TEST(MlpSlot, TrainingLeavesItToTheParts) {
  Model model;
  const auto config = mlp_config("graft-kernels/mlp:SwiGLUMLP", "SwiGLUMLP", Mode::kInference);
  kernelize(model, {.config = config});
  EXPECT_TRUE(model.first->slot.module().swapped());
  model.train();
  const auto report = kernelize_report(model);
  EXPECT_FALSE(model.first->slot.module().swapped());
  EXPECT_EQ(trace_of(*report, "first").considered[0].outcome, "layers.mapping.no-mode");
  EXPECT_EQ(trace_of(*report, "first.act_and_mul").chosen, "graft-kernels/activation:SiluAndMul");
  EXPECT_EQ(trace_of(*report, "first.act_and_mul").inside, "");
  model.first->parameters()[0].requires_grad_();
  model.forward(at::randn({5, 64})).sum().backward();
  EXPECT_TRUE(model.first->parameters()[0].grad().defined());
  model.eval();
  EXPECT_TRUE(model.first->slot.module().swapped());
  EXPECT_EQ(trace_of(*kernelize_report(model), "first.act_and_mul").inside, "first");
  EXPECT_TRUE(model.first->forward(at::randn({5, 64})).requires_grad())
      << "no gradient is cut silently";
}

TEST(MlpSlot, TrainsLikeItsParts) {
  Model model;
  model.train();
  const at::Tensor x = at::randn({3, 5, 64}), grad = at::randn({3, 5, 8});
  std::vector<at::Tensor> leaves = model.parameters();
  leaves.push_back(x);
  for (const at::Tensor& leaf : leaves) {
    leaf.requires_grad_();
  }
  const auto gradients = [&](const std::vector<at::Tensor>& wanted) {
    return torch::autograd::grad({model.forward(x)}, wanted, {grad});
  };
  kernelize(model, {.config = mlp_config("", "SwiGLUMLP", Mode::kTraining)});
  EXPECT_FALSE(model.first->slot.module().swapped());
  const auto parts = gradients(leaves);
  kernelize(model, {.config = mlp_config("graft-kernels/mlp:SwiGLUMLP")});
  EXPECT_TRUE(model.first->slot.module().swapped());
  const auto whole = gradients(leaves);
  // Sums whose terms nearly cancel lose digits: what counts is the largest of a gradient.
  const auto expect_close = [](const at::Tensor& got, const at::Tensor& expected) {
    EXPECT_LE((got - expected).abs().max().item<double>(),
              1e-5 * expected.abs().max().item<double>());
  };
  for (size_t i = 0; i < leaves.size(); ++i) {
    SCOPED_TRACE(i);
    expect_close(whole[i], parts[i]);
  }
  for (const at::Tensor& weight : model.parameters()) {
    weight.requires_grad_(false);
  }
  SCOPED_TRACE("of x alone");
  expect_close(gradients({x})[0], parts.back());
}

TEST(MlpSlot, HasNoSecondDerivative) {
  Model model;
  kernelize(model, {.config = mlp_config("graft-kernels/mlp:SwiGLUMLP")});
  const at::Tensor x = at::randn({2, 64}).requires_grad_();
  const at::Tensor y = model.first->forward(x).sum();
  EXPECT_THROW(torch::autograd::grad({y}, {x}, {}, true, /*create_graph=*/true), IncompatibleError);
}

TEST(MlpSlot, TheUsersKernelForAPartComesBeforeTheDefaultOneForTheWhole) {
  Model model;
  const std::string wish =
      std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/activation:SiluAndMul";
  const auto mapped = kernelize(model, {.config = mlp_config(wish, "SiluAndMul")});
  EXPECT_EQ(trace_of(mapped, "first.act_and_mul").chosen, wish);
  EXPECT_EQ(trace_of(mapped, "first").chosen, "");
  EXPECT_EQ(trace_of(mapped, "first").considered.back().outcome, "layers.kernelize.part-mapped");
  EXPECT_THAT(mapped.to_text(), HasSubstr("the user's mapping names SiluAndMul, a part of it"));
  EXPECT_EQ(trace_of(kernelize(model), "first").chosen, "graft-kernels/mlp:SwiGLUMLP")
      << "by default";
}

TEST(MlpSlot, StepsAsideWhereWeightsArePacked) {
  class PackedMlp : public torch::nn::Module {
   public:
    PackedMlp() { register_parameter("norm", at::ones({64})); }
    Slot<Mlp> slot{*this, {}};
    Slot<PackedLinear> down{*this, {io::GgmlType::kQ8_0}, "down"};
  };
  PackedMlp model;
  model.eval();
  const auto report =
      kernelize(model, {.config = mlp_config("graft-kernels/mlp:SwiGLUMLP"), .strict = true});
  EXPECT_EQ(report.slots[0].considered[0].outcome, "layers.kernelize.packed");
  EXPECT_THAT(report.to_text(),
              AllOf(HasSubstr("PackedLinear serves"), HasSubstr("swapped 1 of 1 slots")));
  EXPECT_EQ(trace_of(report, "down").chosen, "graft-kernels/linear:PackedLinear");
}

TEST(MlpSlot, KnowsWhetherItsKernelMayBeCaptured) {
  Model model;
  kernelize(model, {.config = mlp_config(test_mlps("Right"))});
  EXPECT_EQ(capture_refusal(model), "");
  kernelize(model, {.config = mlp_config(test_mlps("NotCapturable"))});
  EXPECT_THAT(capture_refusal(model),
              HasSubstr("NotCapturable` for first is not safe under capture"));
}

TEST(MlpSlot, OfADryRunSaysWhatWouldBeInside) {
  Model model;
  KernelizeOptions options{.config = mlp_config("graft-kernels/mlp:SwiGLUMLP")};
  options.dry_run = true;
  const auto planned = kernelize(model, options);
  EXPECT_FALSE(model.first->slot.module().swapped());
  EXPECT_EQ(trace_of(planned, "first.up_proj").inside, "first");
  EXPECT_THAT(planned.to_text(), HasSubstr("kernels for 3 of 3 slots"));
}

}  // namespace
}  // namespace graft::layers

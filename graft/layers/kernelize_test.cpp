// Models of one's own with slots, kernelized with packages that the build made (tests/kernels/,
// kernels/).

#include "graft/layers/kernelize.h"

#include <cstdlib>
#include <ctime>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/slot.h"

namespace graft::layers {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

// The guard in this process is what is tried here; graft/canary/ has tests of the canary.
[[maybe_unused]] const int kCanaryIsOff = setenv("GRAFT_CANARY", "off", 1);

constexpr double kEps = 1e-5;

[[maybe_unused]] const int kOffline = setenv("HF_HUB_OFFLINE", "1", 1);  // no request leaves here

class NormModule : public torch::nn::Module {
 public:
  explicit NormModule(int64_t size, RmsNormVariant variant = RmsNormVariant::kCastBeforeWeight)
      : kernel_{*this, {variant}} {
    weight_ = register_parameter("weight", at::rand({size}) + 0.5);
  }
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight_, kEps); }
  bool swapped() const { return kernel_.module().swapped(); }

 private:
  at::Tensor weight_;
  Slot<RmsNorm> kernel_;
};

class TwoNorms : public torch::nn::Module {
 public:
  TwoNorms() {
    first = register_module("first", std::make_shared<NormModule>(64));
    second = register_module("second", std::make_shared<NormModule>(64));
  }
  at::Tensor forward(const at::Tensor& x) const { return second->forward(first->forward(x)); }

  std::shared_ptr<NormModule> first, second;
};

class GatedModule : public torch::nn::Module {
 public:
  GatedModule() { register_parameter("weight", at::ones({1})); }
  Slot<GatedActivation> gated{*this, {ActivationKind::kSilu}, "gated"};
  Slot<Activation> alone{*this, {ActivationKind::kGeluNew}, "alone"};
};

std::string test_norms(const std::string& layer) {
  return std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/norms:" + layer;
}

KernelConfig norm_config(const std::string& kernel, Mode mode = Mode::kFallback) {
  KernelConfig config;
  config.inherit_mapping = false;
  config.kernel_mapping.set("RMSNorm", {"cpu"}, {{mode, kernel::parse_layer_reference(kernel)}});
  return config;
}

KernelizeReport kernelize_with(torch::nn::Module& model, const std::string& layer) {
  model.eval();
  return kernelize(model, {.config = norm_config(test_norms(layer))});
}

// The kernel stays out, the trace says why, and the model computes what it did.
void expect_refused(const std::string& layer, const std::string& code,
                    const testing::Matcher<std::string>& reason) {
  const at::NoGradGuard no_grad;
  NormModule model(64);
  model.eval();
  const at::Tensor x = at::randn({3, 64});
  const at::Tensor before = model.forward(x);
  const auto report = kernelize_with(model, layer);
  ASSERT_EQ(report.slots.size(), 1U);
  EXPECT_FALSE(model.swapped());
  EXPECT_TRUE(report.slots[0].chosen.empty());
  ASSERT_EQ(report.slots[0].considered.size(), 1U);
  EXPECT_EQ(report.slots[0].considered[0].outcome, code);
  EXPECT_THAT(report.slots[0].considered[0].reason, reason);
  EXPECT_TRUE(at::equal(model.forward(x), before));
}

TEST(Kernelize, SwapsAKernelInAndOutAgainBitForBit) {
  const at::NoGradGuard no_grad;
  TwoNorms model;
  model.eval();
  const at::Tensor x = at::randn({5, 64});
  const at::Tensor before = model.forward(x);
  const auto report = kernelize_with(model, "Norm");
  ASSERT_EQ(report.slots.size(), 2U);
  EXPECT_EQ(report.slots[0].slot, "first");
  EXPECT_EQ(report.slots[1].slot, "second");
  EXPECT_TRUE(model.first->swapped());
  EXPECT_TRUE(at::allclose(model.forward(x), before, 1e-5, 1e-6));
  unkernelize(model);
  EXPECT_FALSE(model.first->swapped());
  EXPECT_TRUE(at::equal(model.forward(x), before));
  EXPECT_FALSE(kernelize_report(model));
}

TEST(Kernelize, CallsOpsWhoseArgumentsComeInAnotherOrder) {
  const at::NoGradGuard no_grad;
  NormModule model(64);
  model.eval();
  const at::Tensor x = at::randn({5, 64});
  const at::Tensor before = model.forward(x);
  EXPECT_EQ(kernelize_with(model, "Reordered").slots[0].chosen, test_norms("Reordered"));
  EXPECT_TRUE(model.swapped());
  EXPECT_TRUE(at::allclose(model.forward(x), before, 1e-5, 1e-6));
}

TEST(Kernelize, RefusesAMissingPackage) {
  NormModule model(64);
  model.eval();
  const auto report = kernelize(model, {.config = norm_config("nobody/nothing:RMSNorm")});
  EXPECT_EQ(report.slots[0].considered[0].outcome, "kernel.resolver.missing-package");
  EXPECT_THAT(report.slots[0].considered[0].reason,
              AllOf(HasSubstr("`nobody/nothing`: expected a kernel package"),
                    HasSubstr("embedded hub: `")));
}

TEST(Kernelize, RefusesAMissingDevice) {
  NormModule model(64);
  try {
    kernelize(model, {.device = at::Device(at::kCUDA, 63)});
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("cuda:63"), HasSubstr("expected")));
    EXPECT_EQ(error.exit_code(), 5);
  }
  EXPECT_FALSE(model.swapped());
}

TEST(Kernelize, RefusesAWrongSignatureAndListsEveryMismatch) {
  expect_refused("OtherSchema", "layers.adapter.signature",
                 AllOf(HasSubstr("op `norm_of_other_schema`"),
                       HasSubstr("argument `eps` has type int, the contract's `eps` another"),
                       HasSubstr("argument `kind` of the op is not bound"),
                       HasSubstr("the op has no argument `variant`")));
  expect_refused("MissingOp", "kernel.loader.missing-op",
                 HasSubstr("expected op `norm_that_is_not_there`"));
  expect_refused("OtherContract", "layers.adapter.contract",
                 HasSubstr("expected a layer of contract RMSNorm, got Activation"));
  expect_refused("Nothing", "layers.kernelize.missing-layer",
                 HasSubstr("expected layer `Nothing`"));
}

TEST(Kernelize, RefusesAnotherNumericVariant) {
  expect_refused(
      "OneVariant", "layers.adapter.numeric-variant",
      HasSubstr("expected numeric variant `cast_before_weight`, got only zero_centered"));
  NormModule gemma(64, RmsNormVariant::kZeroCentered);
  kernelize_with(gemma, "OneVariant");
  EXPECT_TRUE(gemma.swapped());
}

TEST(Kernelize, RefusesAKernelThatComputesSomethingElse) {
  expect_refused("Wrong", "layers.guard.refused",
                 HasSubstr("expected an error of at most twice the reference's"));
  expect_refused("WithoutEps", "layers.guard.refused", HasSubstr("expected an error of at most"));
  expect_refused("WithoutNan", "layers.guard.refused",
                 HasSubstr("NaN exactly where the reference has it"));
  expect_refused("Throws", "layers.guard.refused", HasSubstr("this kernel has a bad day"));
}

TEST(Kernelize, RefusesADeviceOrDtypeThatTheLayerDoesNotServe) {
  expect_refused("OnCuda", "layers.kernelize.layer-capability",
                 HasSubstr("the layer serves cuda, not cpu"));
  expect_refused("InHalf", "layers.kernelize.layer-capability",
                 HasSubstr("the layer serves float16, not float32"));
}

TEST(Kernelize, RefusesALayerThatCannotDoWhatItIsRegisteredFor) {
  NormModule model(64);
  model.eval();
  const auto outcome = [&](const std::string& layer, Mode mode) {
    return kernelize(model, {.config = norm_config(test_norms(layer), mode)})
        .slots[0]
        .considered.back();
  };
  EXPECT_THAT(outcome("Norm", Mode::kTraining).reason, HasSubstr("registered for training"));
  EXPECT_THAT(outcome("NotUnderCapture", Mode::kInferenceCompile).reason,
              HasSubstr("registered for a compile mode"));
  EXPECT_EQ(outcome("NotUnderCapture", Mode::kInference).outcome, "chosen");
}

TEST(Kernelize, SaysWhichKernelKeepsAModelFromBeingCaptured) {
  NormModule model(64);
  model.eval();
  EXPECT_EQ(capture_refusal(model), "") << "references can be captured";
  kernelize(model, {.config = norm_config(test_norms("NotUnderCapture"), Mode::kInference)});
  EXPECT_THAT(capture_refusal(model), HasSubstr("NotUnderCapture"));
  EXPECT_FALSE(kernelize_report(model)->to_json()["slots"][0]["capturable"].get<bool>());
  kernelize(model, {.config = norm_config(test_norms("Norm"), Mode::kInference)});
  EXPECT_EQ(capture_refusal(model), "");
  unkernelize(model);
  EXPECT_EQ(capture_refusal(model), "");
}

TEST(Kernelize, TheNextKernelIsTriedWhenTheUsersIsRefused) {
  NormModule model(64);
  model.eval();
  KernelConfig config = norm_config(test_norms("Wrong"));
  config.inherit_mapping = true;
  const auto report = kernelize(model, {.config = config});
  ASSERT_EQ(report.slots[0].considered.size(), 2U);
  EXPECT_EQ(report.slots[0].considered[0].outcome, "layers.guard.refused");
  EXPECT_EQ(report.slots[0].considered[1].outcome, "chosen");
  EXPECT_EQ(report.slots[0].chosen, "graft-kernels/rms-norm:RMSNorm");
  EXPECT_EQ(report.slots[0].source, "embedded hub");
}

TEST(Kernelize, AnEmptyNameKeepsTheModelsOwnForward) {
  NormModule model(64);
  model.eval();
  KernelConfig config = norm_config("");
  config.inherit_mapping = true;
  const auto report = kernelize(model, {.config = config, .strict = true});
  EXPECT_FALSE(model.swapped());
  EXPECT_EQ(report.slots[0].considered[0].outcome, "layers.kernelize.reference");
}

TEST(Kernelize, TrainAndEvalSelectAgain) {
  TwoNorms model;
  KernelConfig config = norm_config(test_norms("Norm"));
  model.train();
  EXPECT_EQ(kernelize(model, {.config = config}).mode, "training");
  EXPECT_FALSE(model.first->swapped());
  EXPECT_THAT(kernelize_report(model)->slots[0].considered.back().reason, HasSubstr("no backward"));
  model.eval();
  EXPECT_TRUE(model.first->swapped());
  EXPECT_TRUE(model.second->swapped());
  EXPECT_EQ(kernelize_report(model)->mode, "inference");
  model.train();
  EXPECT_FALSE(model.first->swapped());
  kernelize(model, {.config = norm_config(test_norms("WithBackward"))});
  EXPECT_TRUE(model.first->swapped());
}

TEST(Kernelize, AModeThatWasNamedStaysWhateverTrainAndEvalSay) {
  NormModule model(64);
  kernelize(model, {.mode = Mode::kInferenceCompile, .config = norm_config(test_norms("Norm"))});
  EXPECT_TRUE(model.swapped());
  model.eval();
  model.train();
  EXPECT_TRUE(model.swapped());
  EXPECT_THROW(kernelize(model, {.mode = Mode::kFallback}), InvalidArgument);
}

TEST(Kernelize, GradientsAreNeverCutSilently) {
  NormModule model(64);
  kernelize_with(model, "Norm");
  const at::Tensor x = at::randn({2, 64});
  try {
    model.forward(x);  // the weight wants a gradient
    FAIL();
  } catch (const IncompatibleError& error) {
    EXPECT_EQ(error.code(), "layers.adapter.no-backward");
    EXPECT_THAT(error.what(), HasSubstr("hint: call model->train()"));
  }
  const at::NoGradGuard no_grad;
  EXPECT_NO_THROW(model.forward(x));
}

TEST(Kernelize, StrictNamesEverySlotAndLeavesTheModelAsItWas) {
  TwoNorms model;
  model.eval();
  try {
    kernelize(model, {.config = norm_config(test_norms("Wrong")), .strict = true});
    FAIL();
  } catch (const IncompatibleError& error) {
    EXPECT_EQ(error.code(), "layers.kernelize.strict");
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("2 of 2"), HasSubstr("first ("), HasSubstr("second (")));
  }
  EXPECT_FALSE(model.first->swapped());
  EXPECT_FALSE(kernelize_report(model));
}

TEST(Kernelize, FallbackFlagsDecideWhichCasesAreErrors) {
  NormModule model(64);
  model.eval();
  const auto run = [&](const std::string& kernel, Fallback fallback) {
    kernelize(model, {.config = norm_config(kernel), .fallback = fallback});
  };
  EXPECT_THROW(run("nobody/nothing:L", Fallback::kUpstreamDefault), IncompatibleError);
  EXPECT_NO_THROW(run("nobody/nothing:L", Fallback::kCannotLoad));
  EXPECT_THROW(run(test_norms("Wrong"), Fallback::kCannotLoad), IncompatibleError);
  EXPECT_NO_THROW(run(test_norms("Wrong"), Fallback::kRefused));
  EXPECT_THROW(run(test_norms("InHalf"), Fallback::kRefused), IncompatibleError);
  EXPECT_NO_THROW(run(test_norms("InHalf"), Fallback::kUpstreamDefault));
  KernelConfig nothing;
  nothing.inherit_mapping = false;
  EXPECT_THROW(kernelize(model, {.config = nothing, .fallback = Fallback::kNoDevice}),
               IncompatibleError);
  EXPECT_NO_THROW(kernelize(model, {.config = nothing, .fallback = Fallback::kNoLayer}));
}

TEST(Kernelize, ALayerNameThatTheModelDoesNotHaveIsAnError) {
  NormModule model(64);
  KernelConfig config = KernelConfig::from_json(R"({"RMSnorm": "org/repo:RMSNorm"})");
  try {
    kernelize(model, {.config = config});
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("(RMSNorm)"), HasSubstr("`RMSnorm`")));
  }
}

TEST(Kernelize, VariablesOfTheEnvironmentTurnEverythingOff) {
  NormModule model(64);
  model.eval();
  for (const auto& [name, value] :
       {std::pair{"USE_HUB_KERNELS", "NO"}, std::pair{"DISABLE_KERNEL_MAPPING", "1"}}) {
    setenv(name, value, 1);
    const auto report =
        kernelize(model, {.config = norm_config(test_norms("Norm")), .strict = true});
    unsetenv(name);
    EXPECT_FALSE(model.swapped());
    EXPECT_EQ(report.disabled_by, name);
    EXPECT_THAT(report.to_text(), HasSubstr(std::string("kernels are off: ") + name));
  }
}

TEST(Kernelize, OurPackagesServeNormsAndActivationsInEveryDtype) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto variant : {RmsNormVariant::kCastBeforeWeight, RmsNormVariant::kCastAfterWeight,
                               RmsNormVariant::kFloatWeight, RmsNormVariant::kZeroCentered}) {
      NormModule model(64, variant);
      model.eval();
      const auto report = kernelize(model, {.dtype = dtype, .strict = true});
      EXPECT_EQ(report.slots[0].chosen, "graft-kernels/rms-norm:RMSNorm");
    }
    GatedModule model;
    model.eval();
    const auto report = kernelize(model, {.dtype = dtype, .strict = true});
    ASSERT_EQ(report.slots.size(), 2U);
    EXPECT_EQ(report.slots[0].slot, "gated");
    EXPECT_EQ(report.slots[0].chosen, "graft-kernels/activation:SiluAndMul");
    EXPECT_EQ(report.slots[1].chosen, "graft-kernels/activation:NewGELU");
  }
}

TEST(Kernelize, APublishedPackageWithoutLayersJsonServesToo) {
  const auto config =
      KernelConfig::from_json(R"({"SiluAndMul": "", "NewGELU": ")" + std::string(GRAFT_BINARY_DIR) +
                              R"(/tests/hub/graft-tests/activation:SiLU"})");
  GatedModule model;
  model.eval();
  const auto report = kernelize(model, {.config = config});
  // SiLU is not NewGELU: the layer is known by its op, and the guard sees the difference.
  EXPECT_EQ(report.slots[1].considered[0].outcome, "layers.guard.refused");
  EXPECT_EQ(report.slots[1].chosen, "graft-kernels/activation:NewGELU");
}

TEST(Kernelize, ThirtyLayersTakeLessThanATenthOfASecond) {
  class Deep : public torch::nn::Module {
   public:
    Deep() {
      for (int i = 0; i < 30; ++i) {
        register_module("norm" + std::to_string(i), std::make_shared<TwoNorms>());
        register_module("mlp" + std::to_string(i), std::make_shared<GatedModule>());
      }
    }
  };
  Deep model;
  model.eval();
  kernelize(model, {.strict = true});         // loads the packages and runs the guard
  const std::clock_t started = std::clock();  // processor time: a busy machine is no failure
  const auto again = kernelize(model, {.strict = true});
  EXPECT_LT(std::clock() - started, CLOCKS_PER_SEC / 10);
  EXPECT_EQ(again.slots.size(), 120U);
}

TEST(Kernelize, TheReportIsOneForPeopleAndOneForPrograms) {
  TwoNorms model;
  model.eval();
  const auto report = kernelize(model);
  const auto rows = report.swapped();
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].layer, "RMSNorm");
  EXPECT_EQ(rows[0].package, "graft-kernels/rms-norm");
  EXPECT_EQ(rows[0].count, 2);
  EXPECT_THAT(report.to_text(),
              AllOf(HasSubstr("2 x RMSNorm (cast_before_weight)"),
                    HasSubstr("graft-kernels/rms-norm:RMSNorm"),
                    HasSubstr("swapped 2 of 2 slots on cpu in float32, mode inference")));
  const auto json = report.to_json();
  EXPECT_EQ(json["swapped"][0]["count"], 2);
  EXPECT_EQ(json["slots"][1]["slot"], "second");
  EXPECT_EQ(json["slots"][1]["considered"][0]["outcome"], "chosen");
}

TEST(Kernelize, ModelsDoNotTouchEachOther) {
  NormModule one(64), other(64);
  one.eval();
  other.eval();
  kernelize(one);
  EXPECT_TRUE(one.swapped());
  EXPECT_FALSE(other.swapped());
  kernelize(other);
  unkernelize(one);
  EXPECT_TRUE(other.swapped());
}

TEST(Kernelize, OfADryRunNamesTheKernelsAndTouchesNothing) {
  TwoNorms model;
  model.eval();
  KernelizeOptions options{.config = norm_config(test_norms("Norm"))};
  options.dry_run = true;
  const auto planned = kernelize(model, options);
  EXPECT_FALSE(model.first->swapped());
  EXPECT_FALSE(kernelize_report(model).has_value());
  EXPECT_TRUE(planned.dry_run);
  EXPECT_EQ(planned.slots[0].chosen, test_norms("Norm"));
  EXPECT_THAT(planned.to_text(), HasSubstr("kernels for 2 of 2 slots"));
  options.config = norm_config(test_norms("Nothing"));
  EXPECT_EQ(kernelize(model, options).slots[0].considered.back().outcome,
            "layers.kernelize.missing-layer");
  options.dry_run = false;
  options.config = norm_config(test_norms("Norm"));
  EXPECT_EQ(kernelize(model, options).slots[0].variant, planned.slots[0].variant);
  EXPECT_TRUE(model.first->swapped());
}

}  // namespace
}  // namespace graft::layers

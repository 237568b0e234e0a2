// The slot of norms and rotation at once: what is inside it, and what its guard refuses.

#include <cstdlib>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/guard.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::layers {
namespace {

using testing::HasSubstr;

[[maybe_unused]] const int kCanaryIsOff = setenv("GRAFT_CANARY", "off", 1);
[[maybe_unused]] const int kOffline = setenv("HF_HUB_OFFLINE", "1", 1);

constexpr char kKernel[] = "graft-kernels/rotary:QKNormRotary";
constexpr double kEps = 1e-6;

class Norm : public torch::nn::Module {
 public:
  explicit Norm(RmsNormVariant variant) : kernel_(*this, {variant, 32, kEps}) {
    weight = register_parameter("weight", at::randn({32}), false);
  }
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight, kEps); }

  at::Tensor weight;

 private:
  Slot<RmsNorm> kernel_;
};

// The middle of an attention; `o_norm` and `rotary_fn_too` are not inside.
class Heads : public torch::nn::Module {
 public:
  explicit Heads(RmsNormVariant variant) : slot(*this, {variant}, "qk_norm_rotary") {
    q_norm = register_module("q_norm", std::make_shared<Norm>(variant));
    k_norm = register_module("k_norm", std::make_shared<Norm>(variant));
    o_norm = register_module("o_norm", std::make_shared<Norm>(variant));
    eval();
  }
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const RotaryTables& tables) const {
    if (slot.module().swapped()) {
      return slot->forward(query, key, {q_norm->weight, k_norm->weight, kEps}, tables);
    }
    return rotary->forward(q_norm->forward(query), k_norm->forward(key), tables);
  }

  Slot<QkNormRotary> slot;
  Slot<Rotary> rotary{*this, {}, "rotary_fn"};
  Slot<Rotary> other{*this, {}, "rotary_fn_too"};
  std::shared_ptr<Norm> q_norm, k_norm, o_norm;
};

const SlotTrace& trace_of(const KernelizeReport& report, const std::string& slot) {
  for (const auto& trace : report.slots) {
    if (trace.slot == slot) {
      return trace;
    }
  }
  throw std::runtime_error("no slot " + slot);
}

RotaryTables tables_of(int64_t length) {
  const at::Tensor angles = at::rand({1, length, 16}).repeat({1, 1, 2});
  const at::Tensor sin = angles.sin();
  return {angles.cos(), sin, at::cat({sin.narrow(-1, 0, 16).neg(), sin.narrow(-1, 16, 16)}, -1)};
}

TEST(QkNormRotarySlot, AKernelDoesTheWorkOfNormsAndRotationAndTheTraceSaysSo) {
  const at::NoGradGuard no_grad;
  for (const auto variant : {RmsNormVariant::kCastBeforeWeight, RmsNormVariant::kZeroCentered}) {
    Heads model(variant);
    const at::Tensor query = at::randn({2, 5, 4, 32}), key = at::randn({2, 5, 2, 32});
    const RotaryTables tables = tables_of(5);
    const auto before = model.forward(query, key, tables);
    const auto report = kernelize(model, {.strict = true});
    EXPECT_EQ(trace_of(report, "qk_norm_rotary").chosen, kKernel);
    for (const char* name : {"q_norm", "k_norm", "rotary_fn"}) {
      EXPECT_EQ(trace_of(report, name).inside, "qk_norm_rotary") << name;
      EXPECT_EQ(trace_of(report, name).chosen, "") << name;
    }
    EXPECT_EQ(trace_of(report, "o_norm").chosen, "graft-kernels/rms-norm:RMSNorm");
    EXPECT_EQ(trace_of(report, "rotary_fn_too").inside, "");
    EXPECT_THAT(report.to_text(), HasSubstr("swapped 3 of 3 slots"));
    const auto after = model.forward(query, key, tables);
    EXPECT_TRUE(at::allclose(after.first, before.first, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(after.second, before.second, 1e-5, 1e-5));
    unkernelize(model);
    EXPECT_TRUE(at::equal(model.forward(query, key, tables).first, before.first));
  }
}

TEST(QkNormRotarySlot, TheUsersKernelForAPartComesFirst) {
  Heads model(RmsNormVariant::kCastBeforeWeight);
  KernelConfig config;
  config.kernel_mapping.set(
      "RMSNorm", {"cpu"},
      {{Mode::kFallback, kernel::parse_layer_reference("graft-kernels/rms-norm:RMSNorm")}});
  const auto report = kernelize(model, {.config = config});
  EXPECT_EQ(trace_of(report, "qk_norm_rotary").considered.back().outcome,
            "layers.kernelize.part-mapped");
  EXPECT_EQ(trace_of(report, "q_norm").chosen, "graft-kernels/rms-norm:RMSNorm");
  EXPECT_EQ(trace_of(report, "rotary_fn").chosen, "graft-kernels/rotary:apply_rotary_transformers");
}

TEST(QkNormRotarySlot, TrainingLeavesItToTheParts) {
  Heads model(RmsNormVariant::kCastBeforeWeight);
  kernelize(model);
  EXPECT_TRUE(model.slot.module().swapped());
  model.train();
  EXPECT_FALSE(model.slot.module().swapped());
  const auto report = *kernelize_report(model);
  EXPECT_EQ(trace_of(report, "qk_norm_rotary").considered[0].outcome, "layers.mapping.no-mode");
  EXPECT_EQ(trace_of(report, "k_norm").chosen, "graft-kernels/rms-norm:RMSNorm");
  EXPECT_EQ(trace_of(report, "k_norm").inside, "");
  const at::Tensor query = at::randn({1, 3, 4, 32}).requires_grad_();
  model.forward(query, at::randn({1, 3, 2, 32}), tables_of(3)).first.sum().backward();
  EXPECT_TRUE(query.grad().defined());
  model.eval();
  EXPECT_TRUE(model.slot.module().swapped());
}

TEST(QkNormRotarySlot, AKernelWithoutABackwardCutsNoGradientSilently) {
  Heads model(RmsNormVariant::kCastBeforeWeight);
  kernelize(model);
  const at::Tensor query = at::randn({1, 3, 4, 32}).requires_grad_();
  EXPECT_THROW(model.forward(query, at::randn({1, 3, 2, 32}), tables_of(3)), IncompatibleError);
}

TEST(QkNormRotarySlot, OfADryRunSaysWhatWouldBeInside) {
  Heads model(RmsNormVariant::kZeroCentered);
  KernelizeOptions options;
  options.dry_run = true;
  const auto planned = kernelize(model, options);
  EXPECT_FALSE(model.slot.module().swapped());
  EXPECT_EQ(trace_of(planned, "q_norm").inside, "qk_norm_rotary");
}

// A kernel that is wrong in one way.
class Wrong : public QkNormRotary::Kernel {
 public:
  enum class Way { kNone, kWeights, kEps, kOrder, kPlace, kValue, kRotation };
  Wrong(Way way, const QkNormRotary::Spec& spec)
      : way_(way), right_(QkNormRotary::reference(spec)), rotary_(Rotary::reference({})) {}

  bool has_backward() const override { return false; }
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const QkNormRotary::Norms& norms,
                                            const RotaryTables& tables) const override {
    QkNormRotary::Norms own = norms;
    if (way_ == Way::kWeights) {
      std::swap(own.query_weight, own.key_weight);
    }
    if (way_ == Way::kEps) {
      own.eps = 1e-3;
    }
    if (way_ == Way::kOrder) {
      const auto [first, second] = rotary_->forward(query, key, tables);
      return unrotated(first, second, own, tables);
    }
    if (way_ == Way::kRotation) {
      return right_->forward(query, key, own, {tables.cos, tables.signed_sin, tables.sin});
    }
    return right_->forward(query, key, own, tables);
  }
  at::Tensor append_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const QkNormRotary::Norms& norms, const RotaryTables& tables,
                            const StepPlace& place, const at::Tensor& keys,
                            const at::Tensor& values) const override {
    StepPlace own = place;
    if (way_ == Way::kPlace) {
      own.lengths = own.lengths + 1;
    }
    return right_->append_forward(query, key, way_ == Way::kValue ? key : value, norms, tables, own,
                                  keys, values);
  }

 private:
  // The norm alone: tables that turn nothing.
  std::pair<at::Tensor, at::Tensor> unrotated(const at::Tensor& query, const at::Tensor& key,
                                              const QkNormRotary::Norms& norms,
                                              const RotaryTables& tables) const {
    const at::Tensor none = at::zeros_like(tables.sin);
    return right_->forward(query, key, norms, {at::ones_like(tables.cos), none, none});
  }

  Way way_;
  std::shared_ptr<const QkNormRotary::Kernel> right_;
  std::shared_ptr<const Rotary::Kernel> rotary_;
};

TEST(QkNormRotaryGuard, RefusesWhatComputesSomethingElse) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto variant : {RmsNormVariant::kCastBeforeWeight, RmsNormVariant::kCastAfterWeight,
                               RmsNormVariant::kFloatWeight, RmsNormVariant::kZeroCentered}) {
      const QkNormRotary::Spec spec{variant};
      const auto verdict = [&](Wrong::Way way) {
        return guard(spec, Wrong(way, spec), *QkNormRotary::reference(spec), dtype, at::kCPU);
      };
      using Way = Wrong::Way;
      EXPECT_EQ(verdict(Way::kNone), "");
      for (const Way way : {Way::kWeights, Way::kEps, Way::kOrder, Way::kRotation}) {
        EXPECT_THAT(verdict(way), HasSubstr("forward")) << static_cast<int>(way);
      }
      EXPECT_THAT(verdict(Way::kPlace), HasSubstr("append_forward"));
      EXPECT_THAT(verdict(Way::kValue), HasSubstr("values"));
    }
  }
  const QkNormRotary::Spec plain{RmsNormVariant::kCastBeforeWeight},
      centered{RmsNormVariant::kZeroCentered};
  EXPECT_THAT(guard(plain, Wrong(Wrong::Way::kNone, centered), *QkNormRotary::reference(plain),
                    at::kFloat, at::kCPU),
              HasSubstr("against float64"));
}

}  // namespace
}  // namespace graft::layers

// Published activations, norms and rotary as layers of a model, and layer-norm by itself.

#include "graft/layers/published/contracts.h"

#include <cmath>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/layers/kernelize.h"
#include "graft/layers/published/layer_norm.h"
#include "graft/layers/published/test_package.h"
#include "graft/layers/slot.h"

namespace graft::layers::published {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Every contract that these kernels serve, with a slot each.
class Slots : public torch::nn::Module {
 public:
  explicit Slots(int64_t hidden = 64) : norm{*this, {.hidden_size = hidden}, "norm"} {
    register_parameter("weight", at::ones({1}));
  }
  Slot<RmsNorm> norm;
  Slot<Rotary> rotary{*this, {}, "rotary"};
  Slot<Activation> silu{*this, {ActivationKind::kSilu}, "silu"};
  Slot<Activation> gelu_new{*this, {ActivationKind::kGeluNew}, "gelu_new"};
  Slot<GatedActivation> gated{*this, {ActivationKind::kSilu}, "gated"};
  Slot<GatedActivation> gated_tanh{*this, {ActivationKind::kGeluTanh}, "gated_tanh"};
};

// One layer from a test package, in a model of `dtype`; the trace of its slot.
SlotTrace swap(Slots& model, const std::string& layer, const std::string& package,
               const std::string& kernel_layer, at::ScalarType dtype = at::kFloat,
               Mode mode = Mode::kInference) {
  KernelConfig config;
  config.inherit_mapping = false;
  config.kernel_mapping.set(
      layer, {"cpu"},
      {{Mode::kFallback,
        kernel::parse_layer_reference(std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/" +
                                      package + ":" + kernel_layer)}});
  const auto report =
      kernelize(model, {.mode = mode, .device = at::kCPU, .dtype = dtype, .config = config});
  for (const auto& slot : report.slots) {
    if (slot.layer == layer) {
      return slot;
    }
  }
  return {};
}

std::string reason(const SlotTrace& trace) {
  return trace.considered.empty() ? "" : trace.considered.back().reason;
}

TEST(PublishedActivations, ServeUnderTheirOwnNamesAndThoseOfTransformers) {
  const at::NoGradGuard no_grad;
  Slots model;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const char* name : {"Silu", "SiLU"}) {
      EXPECT_EQ(reason(swap(model, "SiLU", "activation", name, dtype)), "");
      EXPECT_TRUE(model.silu.module().swapped());
    }
    EXPECT_EQ(reason(swap(model, "NewGELU", "activation", "NewGELU", dtype)), "");
    EXPECT_TRUE(model.gelu_new.module().swapped());
  }
}

TEST(PublishedActivations, TakeHalvesWhereverTheyLie) {
  const at::NoGradGuard no_grad;
  Slots model;
  for (const char* package : {"activation", "activation-cpu"}) {
    EXPECT_EQ(reason(swap(model, "SiluAndMul", package, "SiluAndMul")), "");
    ASSERT_TRUE(model.gated.module().swapped());
    const at::Tensor both = at::randn({2, 5, 16});
    const auto halves = both.chunk(2, -1);
    const at::Tensor want = at::silu(halves[0]) * halves[1];
    expect_close(model.gated->forward(halves[0], halves[1]), want, 1e-6, "one tensor");
    expect_close(model.gated->forward(halves[0].contiguous(), halves[1].contiguous()), want, 1e-6,
                 "two tensors");
    expect_close(model.gated->forward(halves[1], halves[0]), at::silu(halves[1]) * halves[0], 1e-6,
                 "the other way round");
    expect_close(
        model.gated->forward(both.select(1, 2).narrow(1, 0, 8), both.select(1, 2).narrow(1, 8, 8)),
        want.select(1, 2), 1e-6, "strided rows");
  }
  EXPECT_EQ(reason(swap(model, "GeluTanhAndMul", "activation", "GeluTanhAndMul")), "");
  EXPECT_TRUE(model.gated_tanh.module().swapped());
}

TEST(PublishedActivations, WithoutAGradientCannotServeTraining) {
  Slots model;
  EXPECT_THAT(reason(swap(model, "SiLU", "activation", "Silu", at::kFloat, Mode::kTraining)),
              HasSubstr("no backward"));
  EXPECT_EQ(reason(swap(model, "SiLU", "activation", "Silu")), "");
  const at::Tensor x = at::randn({4}).requires_grad_();
  expect_error([&] { model.silu->forward(x); }, "layers.adapter.no-backward",
               HasSubstr("activation"));
  const at::NoGradGuard no_grad;
  expect_error([&] { model.silu->forward(at::randn({4}, at::kDouble)); },
               "layers.published.unsupported", HasSubstr("float32, float16 or bfloat16"));
}

TEST(PublishedActivations, OfTheCpuAreOneOpAlone) {
  Slots model;
  EXPECT_THAT(reason(swap(model, "SiLU", "activation-cpu", "Silu")),
              HasSubstr("expected layer `Silu`"));
}

TEST(PublishedNorms, ServeInferenceAndTraining) {
  for (const auto& [package, layer] :
       {std::pair{"rmsnorm", "RMSNorm"}, std::pair{"layer-norm", "LlamaRMSNorm"}}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const Mode mode : {Mode::kInference, Mode::kTraining}) {
        Slots model;
        EXPECT_EQ(reason(swap(model, "RMSNorm", package, layer, dtype, mode)), "");
        EXPECT_TRUE(model.norm.module().swapped()) << package;
      }
    }
  }
}

TEST(PublishedNorms, RefuseRowsThatTheyCannotReadAtTheSlot) {
  Slots model(100);
  const auto trace = swap(model, "RMSNorm", "layer-norm", "LlamaRMSNorm");
  EXPECT_THAT(reason(trace), AllOf(HasSubstr("multiple of 8"), HasSubstr("100")));
  EXPECT_FALSE(model.norm.module().swapped());
  Slots wide(8200);
  EXPECT_THAT(reason(swap(wide, "RMSNorm", "layer-norm", "LlamaRMSNorm")), HasSubstr("8192"));
}

TEST(PublishedRotary, TurnsBothWays) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Mode mode : {Mode::kInference, Mode::kTraining}) {
      Slots model;
      EXPECT_EQ(
          reason(swap(model, "rotary_pos_emb", "rotary", "apply_rotary_transformers", dtype, mode)),
          "");
      EXPECT_TRUE(model.rotary.module().swapped());
    }
  }
}

TEST(PublishedRotary, OfAnotherSchemaIsRefusedNamingEveryDifference) {
  Slots model;
  const auto trace = swap(model, "rotary_pos_emb", "rotary-other", "apply_rotary_transformers");
  EXPECT_EQ(trace.considered.back().outcome, "layers.published.schema");
  EXPECT_THAT(reason(trace), AllOf(HasSubstr("`out1`: expected a mark of writing, got none"),
                                   HasSubstr("`interleaved` is not expected")));
}

at::Tensor exact_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      bool is_rms) {
  const at::Tensor centred = is_rms ? x : x - x.mean(-1, true);
  const at::Tensor norm = centred * at::rsqrt(centred.pow(2).mean(-1, true) + 1e-5) * weight;
  return bias.defined() ? norm + bias : norm;
}

struct NormCase {
  bool is_rms, biased, adds;
};

TEST(PublishedLayerNorm, AndItsGradientsAreTheFormula) {
  at::manual_seed(1);
  const LayerNorm norm(*load_package("layer-norm"));
  for (const NormCase& c :
       {NormCase{false, true, false}, NormCase{false, false, true}, NormCase{true, false, false},
        NormCase{true, false, true}, NormCase{false, true, true}}) {
    const auto leaf = [](at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(); };
    Tensors inputs = {leaf({2, 3, 24}), leaf({2, 3, 24}), leaf({24}), leaf({24})};
    if (!c.biased) {
      inputs[3] = at::Tensor();
    }
    const NormOptions options{.eps = 1e-5, .is_rms = c.is_rms};
    const auto outputs = [&](bool exact) -> Tensors {
      const at::Tensor sum = inputs[0] + inputs[1];
      if (exact && c.adds) {
        return {exact_norm(sum, inputs[2], inputs[3], c.is_rms), sum};
      }
      if (exact) {
        return {exact_norm(inputs[0], inputs[2], inputs[3], c.is_rms)};
      }
      if (!c.adds) {
        return {norm.forward(inputs[0], inputs[2], inputs[3], options)};
      }
      const auto both = norm.add_forward(inputs[0], inputs[1], inputs[2], inputs[3], options);
      return {both.first, both.second};
    };
    const Tensors got = outputs(false), want = outputs(true);
    Tensors grads, leaves;
    for (const at::Tensor& out : want) {
      grads.push_back(at::randn_like(out));
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].defined() && (c.adds || i != 1)) {
        leaves.push_back(inputs[i]);
      }
    }
    const auto own = torch::autograd::grad(got, leaves, grads),
               right = torch::autograd::grad(want, leaves, grads);
    for (size_t i = 0; i < got.size(); ++i) {
      expect_close(got[i], want[i], 1e-5);
    }
    for (size_t i = 0; i < leaves.size(); ++i) {
      expect_close(own[i], right[i], 1e-4, "input " + std::to_string(i));
    }
  }
}

TEST(PublishedLayerNorm, DropsForwardAndBackwardAlike) {
  at::manual_seed(2);
  const LayerNorm norm(*load_package("layer-norm"));
  const at::Tensor x = at::ones({4, 512}).requires_grad_(), zero = at::zeros({4, 512});
  const auto [out, sum] = norm.add_forward(x, zero, at::ones({512}), {}, {.dropout = 0.25});
  // What was dropped is zero, what was kept is scaled up; the gradient of the sum goes the same way.
  EXPECT_NEAR(sum.eq(0.0).to(at::kFloat).mean().item<double>(), 0.25, 0.05);
  expect_close(torch::autograd::grad({sum}, {x}, {at::ones_like(sum)})[0], sum, 1e-6);
}

TEST(PublishedLayerNorm, RefusesByNameWhatItCannotDo) {
  const LayerNorm norm(*load_package("layer-norm"));
  const at::Tensor x = at::randn({2, 16}), weight = at::ones({16});
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { norm.forward(at::randn({2, 12}), at::ones({12}), {}, {}); }, "multiple of 8");
  refused([&] { norm.forward(x, weight.to(at::kHalf), {}, {}); }, "gamma");
  refused([&] { norm.forward(x, weight, at::ones({8}), {}); }, "beta");
  refused([&] { norm.forward(x, weight, weight, {.is_rms = true}); }, "none for RMSNorm");
  refused([&] { norm.forward(x, weight, {}, {.dropout = 1.0}); }, "dropout_p");
  refused([&] { norm.add_forward(x, at::randn({2, 8}), weight, {}, {}); }, "residual");
}

}  // namespace
}  // namespace graft::layers::published

// Models whose norms of query and key one kernel computes together with the rotation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/layers/kernelize.h"
#include "graft/models/auto_model.h"
#include "graft/models/test_checkpoint.h"

namespace graft::models {
namespace {

using testing::random_weights;
using testing::TempFolder;
using testing::tiny_config;
using testing::write_config;
using testing::write_weights;

constexpr char kLayer[] = "QKNormRotary";

at::Tensor some_ids(int64_t count) {
  return at::arange(3, 3 + count, at::TensorOptions().dtype(at::kLong)).view({1, count});
}

at::Tensor logits_of(CausalLM& model, int64_t count) {
  const at::NoGradGuard no_grad;
  return model.forward({.input_ids = some_ids(count)}).to(at::kFloat);
}

// Logits of a prompt, and of steps whose places the device counts.
std::vector<at::Tensor> logits_of_steps(CausalLM& model) {
  constexpr int64_t kPrompt = 6, kSteps = 4;
  const at::NoGradGuard no_grad;
  const auto cache = model.make_cache(1, kPrompt + kSteps);
  const at::Tensor ids = some_ids(kPrompt + kSteps);
  std::vector<at::Tensor> logits;
  logits.push_back(
      model.forward({.input_ids = ids.narrow(1, 0, kPrompt), .cache = cache.get()}).clone());
  model.count_on_device(*cache, {});
  for (int64_t step = 0; step < kSteps; ++step) {
    logits.push_back(
        model.forward({.input_ids = ids.narrow(1, kPrompt + step, 1), .cache = cache.get()})
            .clone());
  }
  return logits;
}

class QkNormKernels : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto config = tiny_config(GetParam());
    config["head_dim"] = 32;
    write_config(folder_.path(), config);
    write_weights(folder_.path(), random_weights(config));
  }
  std::shared_ptr<CausalLM> load(at::ScalarType dtype) const {
    return AutoModelForCausalLM::from_pretrained(folder_.path().string(), {.dtype = dtype});
  }
  // The kernels of the parts.
  static layers::KernelConfig parts_config() {
    layers::KernelConfig config;
    config.kernel_mapping.set(kLayer, {"cpu"},
                              {{layers::Mode::kFallback, kernel::parse_layer_reference("")}});
    return config;
  }

 private:
  TempFolder folder_;
};

TEST_P(QkNormKernels, ServeNormsAndRotationAtOnceAndSaySo) {
  const auto model = load(at::kFloat);
  const auto report = layers::kernelize(*model, {.strict = true});
  int64_t served = 0, inside = 0;
  for (const auto& slot : report.slots) {
    if (slot.layer == kLayer) {
      EXPECT_EQ(slot.chosen, "graft-kernels/rotary:QKNormRotary");
      EXPECT_THAT(slot.slot, ::testing::EndsWith(".self_attn.qk_norm_rotary"));
      ++served;
    }
    const bool is_inside = slot.inside.ends_with(".qk_norm_rotary");
    inside += is_inside ? 1 : 0;
    const bool is_part = slot.slot.ends_with("q_norm") || slot.slot.ends_with("k_norm") ||
                         slot.slot.ends_with("rotary_fn");
    EXPECT_EQ(is_inside, is_part) << slot.slot;
  }
  EXPECT_EQ(served, 2);
  EXPECT_EQ(inside, 2 * 3);
}

TEST_P(QkNormKernels, GiveTheModelsLogitsAndStepOutAgainBitForBit) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto model = load(dtype);
    std::vector<at::Tensor> before;
    for (const int64_t count : {1, 12}) {
      before.push_back(logits_of(*model, count));
    }
    layers::kernelize(*model);
    size_t at = 0;
    for (const int64_t count : {1, 12}) {
      const at::Tensor want = before[at++], got = logits_of(*model, count);
      EXPECT_LT((got - want).abs().max().item<double>(),
                (dtype == at::kFloat ? 1e-5 : 3e-2) * want.abs().max().item<double>())
          << count;
    }
    layers::unkernelize(*model);
    at = 0;
    for (const int64_t count : {1, 12}) {
      EXPECT_TRUE(at::equal(logits_of(*model, count), before[at++])) << count;
    }
  }
}

// The kernels of the parts round where this one does.
TEST_P(QkNormKernels, HaveTheBitsOfTheKernelsOfTheParts) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto model = load(dtype);
    layers::kernelize(*model, {.config = parts_config()});
    const at::Tensor prompt = logits_of(*model, 12);
    const auto steps = logits_of_steps(*model);
    layers::kernelize(*model);
    EXPECT_TRUE(at::equal(logits_of(*model, 12), prompt)) << c10::toString(dtype);
    const auto own = logits_of_steps(*model);
    for (size_t step = 0; step < steps.size(); ++step) {
      EXPECT_TRUE(at::equal(own[step], steps[step])) << c10::toString(dtype) << " step " << step;
    }
  }
}

TEST_P(QkNormKernels, LeaveGradientsToTheParts) {
  const auto model = load(at::kFloat);
  const auto gradient = [&] {
    const at::Tensor weight = model->named_parameters()["model.layers.0.self_attn.q_norm.weight"];
    const at::Tensor leaf = weight.requires_grad_();
    model->forward({.input_ids = some_ids(5)}).sum().backward();
    const at::Tensor grad = leaf.grad().clone();
    leaf.mutable_grad().reset();
    return grad;
  };
  const at::Tensor before = gradient();
  // Linear and attention have no backward of their own, so theirs stay out.
  auto config =
      layers::KernelConfig::from_json(R"({"QKNormRotary": "graft-kernels/rotary:QKNormRotary"})");
  config.inherit_mapping = false;
  layers::kernelize(*model, {.config = config});
  EXPECT_TRUE(at::allclose(gradient(), before, 1e-4, 1e-6));
}

INSTANTIATE_TEST_SUITE_P(Known, QkNormKernels, ::testing::Values("qwen3", "gemma3_text"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace graft::models

// The loss of causal language models: by the reference and by a kernel, beside the logits' own.

#include <algorithm>
#include <limits>

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/kernelize.h"
#include "graft/models/auto_model.h"
#include "graft/models/test_checkpoint.h"
#include "graft/tensor/device.h"

namespace graft::models {
namespace {

// Asked before anything else asks libtorch for a device.
const bool kHasCuda = tensor::cuda_available();

class Checkpoint {
 public:
  explicit Checkpoint(const std::string& family) {
    auto config = testing::tiny_config(family);
    config["tie_word_embeddings"] = family == "gemma2";
    if (family == "gemma2") {
      config["final_logit_softcapping"] = 3.0;
    }
    testing::write_config(folder_.path(), config);
    testing::write_weights(folder_.path(), testing::random_weights(config));
  }

  std::shared_ptr<CausalLM> load(const LoadOptions& options) const {
    return AutoModelForCausalLM::from_pretrained(folder_.path().string(), options);
  }

 private:
  testing::TempFolder folder_;
};

at::Tensor some_ids() {
  return at::arange(24, at::TensorOptions(at::kLong)).mul(7).remainder(31).view({2, 12});
}

// Some tokens do not count, the first of a row among them: its place has no label anyway.
at::Tensor some_labels() {
  at::Tensor labels = some_ids().clone();
  labels[0].slice(0, 0, 5).fill_(-100);
  return labels;
}

at::Tensor loss_of_logits(CausalLM& model, at::Device device) {
  const at::Tensor logits = model.forward({.input_ids = some_ids().to(device)});
  return at::cross_entropy_loss(logits.slice(1, 0, 11).flatten(0, 1).to(at::kFloat),
                                some_labels().slice(1, 1).flatten().to(device));
}

// Of every weight, a tied one under both names.
std::map<std::string, at::Tensor> gradients(CausalLM& model) {
  std::map<std::string, at::Tensor> gradients;
  for (const auto& weight : model.named_parameters()) {
    gradients[weight.key()] = weight.value().grad().clone();
  }
  model.zero_grad();
  return gradients;
}

bool swapped_loss(torch::nn::Module& model) {
  const auto rows = layers::kernelize_report(model)->swapped();
  return std::any_of(rows.begin(), rows.end(),
                     [](const auto& row) { return row.layer == "ForCausalLMLoss"; });
}

struct FamilyOnDevice {
  const char* family;
  at::Device device;
};

class LossOfFamilies : public ::testing::TestWithParam<FamilyOnDevice> {
 protected:
  void SetUp() override {
    if (GetParam().device.is_cuda() && !kHasCuda) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

TEST_P(LossOfFamilies, IsThatOfTheLogitsWithAndWithoutKernels) {
  const at::Device device = GetParam().device;
  const Checkpoint checkpoint(GetParam().family);
  const at::Tensor ids = some_ids().to(device), labels = some_labels().to(device);
  for (const bool use_kernels : {false, true}) {
    const auto model =
        checkpoint.load({.use_kernels = use_kernels, .device_map = device, .trainable = true});
    model->train();
    if (use_kernels) {
      EXPECT_TRUE(swapped_loss(*model)) << layers::kernelize_report(*model)->to_text();
    }
    const at::Tensor expected = loss_of_logits(*model, device);
    expected.backward();
    const auto wanted = gradients(*model);
    const at::Tensor loss = model->loss({.input_ids = ids}, labels);
    EXPECT_EQ(loss.dim(), 0);
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    EXPECT_NEAR(loss.item<double>(), expected.item<double>(), 1e-5 * expected.item<double>());
    loss.backward();
    for (const auto& [name, gradient] : gradients(*model)) {
      EXPECT_LE((gradient - wanted.at(name)).abs().max().item<double>(),
                1e-4 * wanted.at(name).abs().max().item<double>())
          << name << ", kernels " << use_kernels;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Loss, LossOfFamilies,
                         ::testing::Values(FamilyOnDevice{"llama", at::kCPU},
                                           FamilyOnDevice{"gemma2", at::kCPU},
                                           FamilyOnDevice{"llama", {at::kCUDA, 0}},
                                           FamilyOnDevice{"gemma2", {at::kCUDA, 0}}),
                         [](const auto& instance) {
                           return std::string(instance.param.family) + "_" +
                                  (instance.param.device.is_cuda() ? "cuda" : "cpu");
                         });

TEST(Loss, OfSixteenBitsFollowsAFactorOfALossScaler) {
  const Checkpoint checkpoint("llama");
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    const auto model = checkpoint.load({.use_kernels = true, .dtype = dtype, .trainable = true});
    model->train();
    model->loss({.input_ids = some_ids()}, some_labels()).backward();
    const auto once = gradients(*model);
    (model->loss({.input_ids = some_ids()}, some_labels()) * 1024.0).backward();
    const auto scaled = gradients(*model);
    const std::string head = "lm_head.weight";
    const at::Tensor want = once.at(head).to(at::kFloat) * 1024.0;
    EXPECT_LE((scaled.at(head).to(at::kFloat) - want).abs().max().item<double>(),
              0.02 * want.abs().max().item<double>())
        << toString(dtype);
  }
}

TEST(Loss, IsDividedByWhatTheCallerCounts) {
  const Checkpoint checkpoint("llama");
  for (const bool use_kernels : {false, true}) {
    const auto model = checkpoint.load({.use_kernels = use_kernels, .trainable = true});
    const at::NoGradGuard no_grad;
    const int64_t counted = some_labels().slice(1, 1).ne(-100).sum().item<int64_t>();
    const double mean = model->loss({.input_ids = some_ids()}, some_labels()).item<double>();
    const double part =
        model->loss({.input_ids = some_ids()}, some_labels(), 4 * counted).item<double>();
    EXPECT_NEAR(part, mean / 4, 1e-6 * mean);
    const at::Tensor none = at::full_like(some_ids(), -100);
    EXPECT_TRUE(model->loss({.input_ids = some_ids()}, none).isnan().item<bool>());
  }
}

TEST(Loss, OfAModelThatDoesNotTrainHasNoSlotAndTheSameValue) {
  const Checkpoint checkpoint("llama");
  const auto trainable = checkpoint.load({.trainable = true});
  const auto model = checkpoint.load({.use_kernels = true, .dtype = at::kFloat});
  EXPECT_FALSE(swapped_loss(*model));
  const at::NoGradGuard no_grad;
  EXPECT_NEAR(model->loss({.input_ids = some_ids()}, some_labels()).item<double>(),
              trainable->loss({.input_ids = some_ids()}, some_labels()).item<double>(), 1e-4);
}

TEST(Loss, RefusesWhatDoesNotFit) {
  const Checkpoint checkpoint("llama");
  const auto model = checkpoint.load({});
  const auto code_of = [&](const ForwardInput& input, const at::Tensor& labels, int64_t num_items) {
    try {
      model->loss(input, labels, num_items);
    } catch (const InvalidArgument& error) {
      return std::string(error.code());
    }
    return std::string();
  };
  const auto cache = model->make_cache(2);
  EXPECT_EQ(code_of({.input_ids = some_ids(), .cache = cache.get()}, some_labels(), 0),
            "models.loss.input");
  EXPECT_EQ(code_of({.input_ids = some_ids()}, some_labels().slice(1, 1), 0), "models.loss.labels");
  EXPECT_EQ(code_of({.input_ids = some_ids()}, some_labels().to(at::kInt), 0),
            "models.loss.labels");
  EXPECT_EQ(code_of({.input_ids = some_ids()}, {}, 0), "models.loss.labels");
  EXPECT_EQ(code_of({.input_ids = some_ids()}, some_labels(), -1), "models.loss.num-items");
}

}  // namespace
}  // namespace graft::models

// Models whose matrices stay in the blocks of their .gguf file.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/packed_weight.h"
#include "graft/models/auto_model.h"
#include "graft/models/save_pretrained.h"
#include "graft/models/test_gguf.h"
#include "graft/tensor/device.h"

namespace graft::models {
namespace {

using testing::TempFolder;

at::Tensor some_ids(int64_t count) {
  return at::arange(3, 3 + count, at::TensorOptions().dtype(at::kLong)).view({1, count});
}

at::Tensor logits_of(CausalLM& model, int64_t count = 12) {
  const at::NoGradGuard no_grad;
  return model.forward({.input_ids = some_ids(count).to(model.device())});
}

// A tiny model in blocks of Q8_0.
class PackedModel {
 public:
  explicit PackedModel(const std::string& architecture = "llama",
                       const std::string& model_type = "llama") {
    auto config = testing::tiny_config(model_type);
    config["rms_norm_eps"] = 1e-5F;
    config["rope_theta"] = 5000.0;
    config["tie_word_embeddings"] = model_type.starts_with("gemma");
    if (architecture == "gemma2") {
      config["sliding_window"] = 5;
      config["query_pre_attn_scalar"] = 8;
    }
    testing::write_gguf(architecture, config, testing::random_weights(config), file(), true);
  }

  std::filesystem::path file() const { return folder_.path() / "model.gguf"; }
  std::filesystem::path folder() const { return folder_.path(); }
  std::shared_ptr<CausalLM> load(LoadOptions options) const {
    return AutoModelForCausalLM::from_pretrained(file().string(), options);
  }

 private:
  TempFolder folder_;
};

class PackedArchitectures : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(PackedArchitectures, ByTheReferenceHaveTheBitsOfTheUnpackedModel) {
  const PackedModel files(GetParam().first, GetParam().second);
  const auto unpacked = files.load({.weights = WeightFormat::kUnpacked});
  const auto packed = files.load({.weights = WeightFormat::kPacked});
  EXPECT_TRUE(at::equal(logits_of(*packed), logits_of(*unpacked)));
  EXPECT_EQ(nn::packed_bytes(*unpacked), 0);
  EXPECT_GT(nn::packed_bytes(*packed), 0);
  EXPECT_EQ(packed->info().num_parameters, unpacked->info().num_parameters);
  EXPECT_EQ(packed->dtype(), at::kFloat);
  for (const at::Tensor& parameter : packed->parameters()) {
    EXPECT_TRUE(parameter.is_cpu());
    EXPECT_EQ(parameter.dim(), 1);
  }
}

TEST_P(PackedArchitectures, WithKernelsStayCloseAndComeBack) {
  const PackedModel files(GetParam().first, GetParam().second);
  const auto unpacked = files.load({.weights = WeightFormat::kUnpacked});
  const auto packed = files.load({.use_kernels = true});
  const auto report = layers::kernelize_report(*packed);
  ASSERT_TRUE(report.has_value());
  int64_t swapped = 0;
  for (const auto& slot : report->slots) {
    EXPECT_NE(slot.layer, "Linear") << slot.slot;
    if (slot.layer == "PackedLinear") {
      EXPECT_EQ(slot.numeric_variant, "Q8_0");
      EXPECT_FALSE(slot.chosen.empty()) << slot.slot;
      ++swapped;
    }
  }
  EXPECT_GT(swapped, 8);
  for (const int64_t count : {1, 12, 24}) {  // one row, few rows, a matrix product
    const at::Tensor want = logits_of(*unpacked, count);
    const double scale = want.abs().max().item<double>();
    const double error = (logits_of(*packed, count) - want).abs().max().item<double>();
    EXPECT_LT(error, (count <= 16 ? 2e-3 : 3e-2) * scale) << count;
  }
  layers::unkernelize(*packed);
  EXPECT_TRUE(at::equal(logits_of(*packed), logits_of(*unpacked)));
}

INSTANTIATE_TEST_SUITE_P(Known, PackedArchitectures,
                         ::testing::Values(std::pair{"llama", "llama"}, std::pair{"qwen2", "qwen2"},
                                           std::pair{"phi3", "phi3"},
                                           std::pair{"gemma2", "gemma2"}),
                         [](const auto& instance) { return std::string(instance.param.first); });

TEST(PackedModels, AreTheChoiceOfKernelsOnTheCpuWithoutADtype) {
  const PackedModel files;
  const auto is_packed = [&](const LoadOptions& options) {
    return nn::packed_bytes(*files.load(options)) > 0;
  };
  EXPECT_TRUE(is_packed({.use_kernels = true}));
  EXPECT_FALSE(is_packed({}));
  EXPECT_FALSE(is_packed({.use_kernels = true, .dtype = at::kFloat}));
  EXPECT_FALSE(is_packed({.use_kernels = true, .trainable = true}));
  EXPECT_FALSE(is_packed({.use_kernels = true, .weights = WeightFormat::kUnpacked}));
  setenv("USE_HUB_KERNELS", "0", 1);
  EXPECT_FALSE(is_packed({.use_kernels = true}));
  unsetenv("USE_HUB_KERNELS");
}

TEST(PackedModels, TakeTheDtypeOfEverythingElse) {
  const PackedModel files;
  const auto model =
      files.load({.use_kernels = true, .dtype = at::kBFloat16, .weights = WeightFormat::kPacked});
  EXPECT_EQ(model->dtype(), at::kBFloat16);
  const auto wide = files.load({.weights = WeightFormat::kUnpacked});
  const at::Tensor want = logits_of(*wide), got = logits_of(*model);
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  EXPECT_LT((got.to(at::kFloat) - want).abs().max().item<double>(),
            0.05 * want.abs().max().item<double>());
}

TEST(PackedModels, AreRefusedWhereTheyCannotBe) {
  const PackedModel files;
  const auto expect_refused = [](const auto& load) {
    try {
      load();
      ADD_FAILURE() << "loaded";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.code(), "models.auto_model.packed");
    }
  };
  expect_refused([&] { files.load({.weights = WeightFormat::kPacked, .trainable = true}); });
  const auto model = files.load({.weights = WeightFormat::kUnpacked});
  save_pretrained(*model, files.folder() / "saved");
  expect_refused([&] {
    AutoModelForCausalLM::from_pretrained((files.folder() / "saved").string(),
                                          {.weights = WeightFormat::kPacked});
  });
  EXPECT_THROW(parse_weight_format("squeezed"), InvalidArgument);
}

TEST(PackedModels, StayPackedOnCuda) {
  if (!tensor::cuda_available()) {
    GTEST_SKIP() << "no CUDA device";
  }
  for (const char* name : {"llama", "gemma2"}) {  // with a head of its own, and a tied one
    const PackedModel files(name, name);
    const DeviceMap cuda("cuda");
    const auto unpacked = files.load({.device_map = cuda, .weights = WeightFormat::kUnpacked});
    const auto packed =
        files.load({.use_kernels = true, .device_map = cuda, .weights = WeightFormat::kPacked});
    EXPECT_GT(nn::packed_bytes(*packed), 0);
    const auto report = layers::kernelize_report(*packed);
    ASSERT_TRUE(report.has_value());
    for (const auto& slot : report->slots) {
      EXPECT_TRUE(slot.layer != "PackedLinear" || !slot.chosen.empty()) << slot.slot;
    }
    for (const int64_t count : {1, 12, 24}) {
      const at::Tensor want = logits_of(*unpacked, count);
      const double error = (logits_of(*packed, count) - want).abs().max().item<double>();
      EXPECT_LT(error, 3e-2 * want.abs().max().item<double>()) << name << " " << count;
    }
    layers::unkernelize(*packed);
    EXPECT_TRUE(at::equal(logits_of(*packed), logits_of(*unpacked))) << name;
  }
}

TEST(PackedModels, AreSavedUnpacked) {
  const PackedModel files("gemma2", "gemma2");  // with a tied head
  const auto model = files.load({.use_kernels = true});
  save_pretrained(*model, files.folder() / "saved");
  const auto saved = AutoModelForCausalLM::from_pretrained((files.folder() / "saved").string());
  layers::unkernelize(*model);
  EXPECT_TRUE(at::equal(logits_of(*saved), logits_of(*model)));
}

TEST(PackedModels, RefuseAnIdThatIsNoRow) {
  const PackedModel files;
  const auto model = files.load({.weights = WeightFormat::kPacked});
  EXPECT_THROW(model->forward({.input_ids = at::full({1, 1}, 32, at::kLong)}), InvalidArgument);
  EXPECT_THROW(model->forward({.input_ids = at::full({1, 1}, -1, at::kLong)}), InvalidArgument);
}

}  // namespace
}  // namespace graft::models

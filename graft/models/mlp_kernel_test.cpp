// Models whose MLPs one kernel serves.

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

at::Tensor some_ids(int64_t count) {
  return at::arange(3, 3 + count, at::TensorOptions().dtype(at::kLong)).view({1, count});
}

at::Tensor logits_of(CausalLM& model, int64_t count) {
  const at::NoGradGuard no_grad;
  return model.forward({.input_ids = some_ids(count)}).to(at::kFloat);
}

struct Family {
  const char* model_type;
  const char* activation;
  const char* layer;  // of the MLP
  int64_t inside;     // slots of one MLP
};

layers::KernelConfig mlp_config(const std::string& layer) {
  return layers::KernelConfig::from_json(R"({")" + layer + R"(": "graft-kernels/mlp:)" + layer +
                                         R"("})");
}

class MlpKernels : public ::testing::TestWithParam<Family> {
 protected:
  nlohmann::json config() const {
    auto config = tiny_config(GetParam().model_type);
    config[std::string(GetParam().model_type).starts_with("gemma") ? "hidden_activation"
                                                                   : "hidden_act"] =
        GetParam().activation;
    if (std::string(GetParam().model_type) == "llama") {
      config["mlp_bias"] = true;
    }
    return config;
  }
};

TEST_P(MlpKernels, GiveTheModelsLogitsAndStepOutAgainBitForBit) {
  TempFolder folder;
  write_config(folder.path(), config());
  write_weights(folder.path(), random_weights(config()));
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto model =
        AutoModelForCausalLM::from_pretrained(folder.path().string(), {.dtype = dtype});
    std::vector<at::Tensor> before;
    for (const int64_t count : {1, 12, 24}) {
      before.push_back(logits_of(*model, count));
    }
    const auto report =
        layers::kernelize(*model, {.config = mlp_config(GetParam().layer), .strict = true});
    int64_t served = 0, inside = 0;
    for (const auto& slot : report.slots) {
      if (slot.layer == GetParam().layer) {
        EXPECT_EQ(slot.chosen, std::string("graft-kernels/mlp:") + GetParam().layer);
        EXPECT_THAT(slot.slot, ::testing::EndsWith(".mlp"));
        ++served;
      }
      inside += slot.inside.empty() ? 0 : 1;
    }
    EXPECT_EQ(served, 2);
    EXPECT_EQ(inside, 2 * GetParam().inside);
    size_t at = 0;
    for (const int64_t count : {1, 12, 24}) {  // one row, few rows, a matrix product
      const at::Tensor want = before[at++], got = logits_of(*model, count);
      const double error = (got - want).abs().max().item<double>();
      EXPECT_LT(error, (dtype == at::kFloat ? 1e-5 : 3e-2) * want.abs().max().item<double>())
          << count;
    }
    layers::unkernelize(*model);
    at = 0;
    for (const int64_t count : {1, 12, 24}) {
      EXPECT_TRUE(at::equal(logits_of(*model, count), before[at++])) << count;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Known, MlpKernels,
    ::testing::Values(Family{"llama", "silu", "SwiGLUMLP", 4}, Family{"qwen2", "gelu", "MLP", 4},
                      Family{"phi3", "silu", "SwiGLUMLP", 3},  // gate and up in one weight
                      Family{"gemma2", "gelu_pytorch_tanh", "GeGLUMLP", 4}),
    [](const auto& instance) { return std::string(instance.param.model_type); });

}  // namespace
}  // namespace graft::models

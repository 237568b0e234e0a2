// Whole models that attend by a named kernel (tests/kernels/published/), beside the same model's eager
// attention: loading, changing after loading, caches, padding, gradients, refusals.

#include <cstdlib>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/core/error.h"
#include "graft/models/auto_model.h"

namespace graft::models {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string folder(const std::string& name) {
  return std::string(GRAFT_TEST_DATA) + "/models/" + name;
}

class NamedAttention : public testing::Test {
 protected:
  void SetUp() override {
    const std::string hub = std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/";
    std::string list;
    for (const char* name :
         {"flash-attn2", "flash-attn2-varlen", "flash-attn3-forward", "vllm-flash-attn3"}) {
      list += std::string(list.empty() ? "" : ":") + "org/" + name + "=" + hub + name;
    }
    setenv("LOCAL_KERNELS", list.c_str(), 1);
    setenv("HF_HUB_OFFLINE", "1", 1);
    setenv("KERNELS_CACHE", "/nowhere", 1);
    setenv("HF_HUB_CACHE", "/nowhere", 1);
  }
  void TearDown() override {
    for (const char* name : {"LOCAL_KERNELS", "HF_HUB_OFFLINE", "KERNELS_CACHE", "HF_HUB_CACHE"}) {
      unsetenv(name);
    }
  }

  static std::shared_ptr<CausalLM> load(const std::string& model, const std::string& attention,
                                        bool trainable = false) {
    return AutoModelForCausalLM::from_pretrained(
        folder(model),
        {.dtype = at::kBFloat16, .attn_implementation = attention, .trainable = trainable});
  }

  template <typename Call>
  static void expect_error(const Call& call, const std::string& code,
                           const testing::Matcher<std::string>& text) {
    try {
      call();
      ADD_FAILURE() << "expected " << code;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_THAT(std::string(error.what()), text);
    }
  }
};

at::Tensor ids() {
  return at::tensor({3, 17, 5, 60, 2, 9, 33, 8, 1, 44, 7, 21, 50, 12}, at::kLong).view({2, 7});
}

// Of two bfloat16 models whose roundings lie in different places.
void expect_close(const at::Tensor& got, const at::Tensor& want) {
  const double scale = std::max(1.0, want.abs().max().item<double>());
  EXPECT_LT((got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>(), 6e-2 * scale);
}

TEST_F(NamedAttention, GivesTheLogitsOfEveryFamily) {
  const at::NoGradGuard no_grad;
  // Windows and caps among them: mistral, gemma3, gemma2.
  for (const char* model : {"llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3"}) {
    SCOPED_TRACE(model);
    const at::Tensor want = load(model, "eager")->forward({.input_ids = ids()});
    for (const char* attention : {"org/flash-attn2", "org/vllm-flash-attn3", "graft"}) {
      SCOPED_TRACE(attention);
      const auto own = load(model, attention);
      EXPECT_EQ(own->attn_implementation(), attention);
      expect_close(own->forward({.input_ids = ids()}), want);
    }
  }
}

TEST_F(NamedAttention, GoesOnOverACacheAndAPaddedBatch) {
  const at::NoGradGuard no_grad;
  at::Tensor mask = at::ones({2, 7}, at::kLong);
  mask[0].slice(0, 0, 2).fill_(0);
  const at::Tensor positions = (mask.cumsum(1) - 1).clamp_min(0);
  const auto run = [&](CausalLM& model, int64_t max_length) {
    const auto cache = model.make_cache(2, max_length);
    std::vector<at::Tensor> logits;
    logits.push_back(model.forward({.input_ids = ids().narrow(1, 0, 4),
                                    .attention_mask = mask.narrow(1, 0, 4),
                                    .position_ids = positions.narrow(1, 0, 4),
                                    .cache = cache.get(),
                                    .logits_to_keep = 1}));
    for (int64_t t = 4; t < 7; ++t) {
      logits.push_back(model.forward({.input_ids = ids().narrow(1, t, 1),
                                      .attention_mask = mask.narrow(1, 0, t + 1),
                                      .position_ids = positions.narrow(1, t, 1),
                                      .cache = cache.get()}));
    }
    return at::cat(logits, 1);
  };
  for (const char* attention : {"org/flash-attn2", "org/flash-attn3-forward", "graft"}) {
    for (const int64_t max_length : {0, 16}) {
      expect_close(run(*load("qwen2", attention), max_length),
                   run(*load("qwen2", "eager"), max_length));
    }
  }
}

TEST_F(NamedAttention, ChangesAfterLoadingAndNotOnAnError) {
  const at::NoGradGuard no_grad;
  const auto model = load("gemma2", "sdpa");
  const at::Tensor before = model->forward({.input_ids = ids()});
  model->set_attn_implementation("org/flash-attn2");
  EXPECT_EQ(model->attn_implementation(), "org/flash-attn2");
  expect_close(model->forward({.input_ids = ids()}), before);
  expect_error([&] { model->set_attn_implementation("org/flash-attn2-varlen"); },
               "models.attn_implementation.refused", HasSubstr("sliding window"));
  expect_error([&] { model->set_attn_implementation("org/nothing"); },
               "kernel.resolver.missing-package", HasSubstr("org/nothing"));
  expect_error([&] { model->set_attn_implementation("flashy"); },
               "models.attn_implementation.unknown", HasSubstr("flashy"));
  EXPECT_EQ(model->attn_implementation(), "org/flash-attn2");
  model->set_attn_implementation("sdpa");
  EXPECT_TRUE(model->forward({.input_ids = ids()}).equal(before));
}

TEST_F(NamedAttention, TrainsWhereTheKernelHasABackward) {
  const auto gradients = [&](const std::string& attention) {
    const auto model = load("llama", attention, /*trainable=*/true);
    model->train();
    const at::Tensor logits = model->forward({.input_ids = ids()}).to(at::kFloat);
    const at::Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), ids().flatten());
    return torch::autograd::grad({loss}, model->parameters());
  };
  const auto want = gradients("eager");
  for (const char* attention : {"org/flash-attn2", "graft"}) {
    const auto got = gradients(attention);
    for (size_t i = 0; i < want.size(); ++i) {
      expect_close(got[i], want[i]);
    }
  }
  expect_error([&] { load("llama", "org/flash-attn3-forward", /*trainable=*/true); },
               "models.attn_implementation.refused", HasSubstr("no backward"));
}

TEST_F(NamedAttention, IsRefusedBeforeWeightsAreRead) {
  bool read = false;
  const LoadOptions options{.dtype = at::kFloat,
                            .attn_implementation = "org/flash-attn2",
                            .progress = [&](int64_t, int64_t) { read = true; }};
  expect_error([&] { AutoModelForCausalLM::from_pretrained(folder("llama"), options); },
               "models.attn_implementation.refused",
               AllOf(HasSubstr("org/flash-attn2"), HasSubstr("float32")));
  EXPECT_FALSE(read);
}

TEST_F(NamedAttention, IsListedAmongTheCandidates) {
  const auto model = load("llama", "org/flash-attn2");
  auto candidates = model->attention_candidates(1);
  EXPECT_EQ(candidates.front().name, "org/flash-attn2 (flash-attn2)");
  EXPECT_EQ(candidates.front().reason, "");
  for (size_t i = 1; i < candidates.size(); ++i) {
    EXPECT_THAT(candidates[i].reason, HasSubstr("names a kernel"));
  }
  model->set_attn_implementation("eager");
  candidates = model->attention_candidates(7);
  EXPECT_EQ(candidates.back().reason, "");
  EXPECT_THAT(candidates.front().reason, HasSubstr("formula"));
}

}  // namespace
}  // namespace graft::models

// Attention by name, with packages that carry the published schemas (tests/kernels/published/): what
// is chosen, what is refused, and what comes out, held against the formula.

#include "graft/nn/attention_kernel.h"

#include <cstdlib>
#include <limits>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/core/error.h"
#include "graft/nn/attention.h"

namespace graft::nn {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string package(const std::string& name) {
  return std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/" + name;
}

// LOCAL_KERNELS for one test.
class AttentionByName : public testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(3);
    setenv("HF_HUB_OFFLINE", "1", 1);
    setenv("KERNELS_CACHE", "/nowhere", 1);
    setenv("HF_HUB_CACHE", "/nowhere", 1);
  }
  void TearDown() override {
    for (const char* name : {"LOCAL_KERNELS", "HF_HUB_OFFLINE", "KERNELS_CACHE", "HF_HUB_CACHE"}) {
      unsetenv(name);
    }
  }

  static void provide(const std::string& repository, const std::string& name) {
    setenv("LOCAL_KERNELS", (repository + "=" + package(name)).c_str(), 1);
  }
  static AttentionChoice choose(const std::string& test_package) {
    provide("org/" + test_package, test_package);
    return choose_attention("org/" + test_package, at::kCPU);
  }
};

template <typename Call>
void expect_error(const Call& call, const std::string& code,
                  const testing::Matcher<std::string>& text) {
  try {
    call();
    ADD_FAILURE() << "expected " << code;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(std::string(error.what()), text);
  }
}

struct Case {
  int64_t queries, keys, window;
  double softcap;
  bool padded;
  int64_t head_dim;
};

const AttentionSlot& no_slot() {
  struct Owner : torch::nn::Module {
    AttentionSlot slot{*this, {}};
  };
  static const auto owner = std::make_shared<Owner>();
  return owner->slot;
}

at::Tensor make_padding(const Case& c) {
  at::Tensor padding = at::ones({2, c.keys}, at::kBool);
  if (c.padded) {
    padding[1].slice(0, 0, 3).fill_(false);
  }
  return padding;
}

// Attention in float64 under the same mask; differentiable.
at::Tensor exact(const Case& c, const at::Tensor& query, const at::Tensor& key,
                 const at::Tensor& value, double scale) {
  const MaskRequest request{.num_new = c.queries,
                            .num_past = c.keys - c.queries,
                            .padding = make_padding(c),
                            .dtype = at::kFloat,
                            .backend = AttentionBackend::kEager};
  return attend(no_slot(), query.to(at::kDouble), key.to(at::kDouble), value.to(at::kDouble),
                build_mask(request, c.window),
                {.num_heads = query.size(2),
                 .num_kv_heads = key.size(1),
                 .head_dim = query.size(3),
                 .scale = scale,
                 .softcap = c.softcap});
}

at::Tensor by_name(const AttentionChoice& choice, const Case& c, const at::Tensor& query,
                   const at::Tensor& key, const at::Tensor& value, double scale) {
  const MaskRequest request{.num_new = c.queries,
                            .num_past = c.keys - c.queries,
                            .padding = c.padded ? make_padding(c) : at::Tensor(),
                            .dtype = query.scalar_type(),
                            .backend = choice.backend,
                            .kernel = choice.kernel.get()};
  return attend(no_slot(), query, key, value, build_mask(request, c.window),
                {.num_heads = query.size(2),
                 .num_kv_heads = key.size(1),
                 .head_dim = query.size(3),
                 .scale = scale,
                 .softcap = c.softcap});
}

// Padded queries give zeros here and nothing of meaning in the formula.
at::Tensor real_rows(const Case& c) {
  return make_padding(c).narrow(1, c.keys - c.queries, c.queries).unsqueeze(-1);
}

const std::vector<Case> kCases = {
    {7, 7, 0, 0.0, false, 16}, {7, 12, 0, 0.0, false, 16}, {1, 9, 0, 0.0, false, 16},
    {7, 7, 0, 0.0, true, 16},  {1, 9, 0, 0.0, true, 16},   {5, 9, 0, 0.0, true, 16},
    {6, 6, 0, 0.0, false, 20},
};
const std::vector<Case> kWindowsAndCaps = {
    {7, 7, 3, 0.0, false, 16}, {5, 9, 4, 0.0, true, 16},  {1, 9, 4, 0.0, false, 16},
    {7, 7, 9, 0.0, false, 16}, {7, 7, 0, 5.0, false, 16}, {4, 9, 3, 2.0, true, 24},
};

void expect_close(const at::Tensor& got, const at::Tensor& want, double tolerance,
                  const std::string& what) {
  const double error = (got.to(at::kDouble) - want).abs().max().item<double>();
  EXPECT_LT(error, tolerance * std::max(1.0, want.abs().max().item<double>())) << what;
}

std::string describe(const Case& c) {
  return "S" + std::to_string(c.queries) + " T" + std::to_string(c.keys) + " window " +
         std::to_string(c.window) + " cap " + std::to_string(c.softcap) +
         (c.padded ? ", padded" : "") + " D" + std::to_string(c.head_dim);
}

void expect_forward(const AttentionChoice& choice, const std::vector<Case>& cases,
                    at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  for (const Case& c : cases) {
    const at::Tensor query = at::randn({2, c.queries, 4, c.head_dim}).to(dtype),
                     key = at::randn({2, 2, c.keys + 3, c.head_dim}).to(dtype).narrow(2, 0, c.keys),
                     value =
                         at::randn({2, 2, c.keys + 3, c.head_dim}).to(dtype).narrow(2, 0, c.keys);
    const at::Tensor got = by_name(choice, c, query, key, value, 0.3);
    const at::Tensor want = exact(c, query, key, value, 0.3);
    expect_close(got.where(real_rows(c), 0.0), want.where(real_rows(c), 0.0), 1e-2, describe(c));
    EXPECT_EQ(got.logical_not().logical_or(real_rows(c)).all().item<bool>(), true) << describe(c);
  }
}

void expect_gradients(const AttentionChoice& choice, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const auto leaf = [&](at::IntArrayRef sizes) {
      return at::randn(sizes).to(at::kBFloat16).requires_grad_();
    };
    const at::Tensor query = leaf({2, c.queries, 4, c.head_dim}),
                     key = leaf({2, 2, c.keys, c.head_dim}),
                     value = leaf({2, 2, c.keys, c.head_dim});
    const at::Tensor weight =
        at::randn({2, c.queries, 4 * c.head_dim}).where(real_rows(c), 0.0).to(at::kBFloat16);
    const auto gradients = [&](const at::Tensor& out) {
      const at::Tensor loss = (out.where(real_rows(c), 0.0) * weight.to(out.scalar_type())).sum();
      return torch::autograd::grad({loss}, {query, key, value});
    };
    const auto got = gradients(by_name(choice, c, query, key, value, 0.3));
    const auto want = gradients(exact(c, query, key, value, 0.3));
    for (size_t i = 0; i < 3; ++i) {
      expect_close(got[i], want[i].to(at::kDouble), 2e-2,
                   describe(c) + " input " + std::to_string(i));
    }
  }
}

TEST_F(AttentionByName, FlashAttentionsForwardIsTheFormula) {
  for (const char* name :
       {"flash-attn2", "flash-attn2-stable", "flash-attn3", "vllm-flash-attn3"}) {
    SCOPED_TRACE(name);
    const AttentionChoice choice = choose(name);
    EXPECT_EQ(choice.backend, AttentionBackend::kKernel);
    expect_forward(choice, kCases, at::kBFloat16);
    expect_forward(choice, kWindowsAndCaps, at::kHalf);
  }
}

TEST_F(AttentionByName, FlashAttentionsBackwardJoinsAutograd) {
  for (const char* name :
       {"flash-attn2", "flash-attn2-stable", "flash-attn3", "vllm-flash-attn3"}) {
    SCOPED_TRACE(name);
    const AttentionChoice choice = choose(name);
    expect_gradients(choice, kCases);
    expect_gradients(choice, kWindowsAndCaps);
  }
}

TEST_F(AttentionByName, TheBuildForTheCpuServesWhatItHas) {
  const AttentionChoice choice = choose("flash-attn2-varlen");
  expect_forward(choice, kCases, at::kBFloat16);
  const AttentionNeeds plain{.dtype = at::kBFloat16, .head_dim = 64};
  EXPECT_EQ(choice.kernel->refusal(plain), "");
  AttentionNeeds needs = plain;
  needs.window = true;
  EXPECT_THAT(choice.kernel->refusal(needs), HasSubstr("sliding window"));
  needs = plain;
  needs.softcap = true;
  EXPECT_THAT(choice.kernel->refusal(needs), HasSubstr("soft cap"));
  needs = plain;
  needs.training = true;
  EXPECT_THAT(choice.kernel->refusal(needs), HasSubstr("no backward"));
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 7, 4, 16}).to(at::kBFloat16), kv = x.transpose(1, 2);
  expect_error(
      [&] {
        by_name(choice, {7, 7, 3, 0.0, false, 16}, x, kv, kv, 0.3);
      },
      "layers.published.unsupported", HasSubstr("window"));
  expect_error(
      [&] {
        by_name(choice, {7, 7, 0, 2.0, false, 16}, x, kv, kv, 0.3);
      },
      "layers.published.unsupported", HasSubstr("softcap"));
}

TEST_F(AttentionByName, AKernelThatCannotDoWhatAModelAsksIsRefusedByName) {
  const auto reason = [](const AttentionChoice& choice, AttentionNeeds needs) {
    try {
      check_attention(choice, needs);
      return std::string();
    } catch (const IncompatibleError& error) {
      EXPECT_EQ(error.code(), "models.attn_implementation.refused");
      return std::string(error.what());
    }
  };
  const AttentionChoice second = choose("flash-attn2"), third = choose("flash-attn3"),
                        vllm = choose("vllm-flash-attn3"), alone = choose("flash-attn3-forward");
  for (const AttentionChoice& choice : {second, third, vllm}) {
    EXPECT_EQ(reason(choice, {.dtype = at::kHalf,
                              .head_dim = 128,
                              .window = true,
                              .softcap = true,
                              .training = true}),
              "");
    EXPECT_THAT(reason(choice, {.dtype = at::kFloat, .head_dim = 128}),
                AllOf(HasSubstr(choice.name), HasSubstr("float32")));
    EXPECT_THAT(reason(choice, {.dtype = at::kHalf, .head_dim = 320}), HasSubstr("320"));
  }
  const AttentionNeeds sinks{.dtype = at::kBFloat16, .head_dim = 64, .sinks = true};
  EXPECT_THAT(reason(second, sinks), HasSubstr("sinks"));
  EXPECT_THAT(reason(third, sinks), HasSubstr("vllm-flash-attn3"));
  EXPECT_EQ(reason(vllm, sinks), "");
  EXPECT_THAT(reason(alone, {.dtype = at::kHalf, .head_dim = 64, .training = true}),
              HasSubstr("no backward"));
  EXPECT_EQ(reason(choose_attention("sdpa", at::kCPU), sinks), "");
}

TEST_F(AttentionByName, AKernelWithoutABackwardDoesNotCutTheGraph) {
  const AttentionChoice choice = choose("flash-attn3-forward");
  const at::Tensor x = at::randn({1, 4, 2, 16}).to(at::kBFloat16).requires_grad_();
  expect_error(
      [&] {
        by_name(choice, {4, 4, 0, 0.0, false, 16}, x, x.transpose(1, 2), x.transpose(1, 2), 0.3);
      },
      "layers.adapter.no-backward", HasSubstr("org/flash-attn3-forward"));
}

TEST_F(AttentionByName, AnotherSchemaIsRefusedNamingEveryDifference) {
  expect_error([] { choose("flash-attn3-other"); }, "layers.published.schema",
               AllOf(HasSubstr("`is_causal`: expected the default False, got the default True"),
                     HasSubstr("`window_size_left`: expected that name, got `window_left`"),
                     HasSubstr("`softcap`: expected float, got int")));
}

TEST_F(AttentionByName, NamesOfTransformersStandForKernelsOfTheHub) {
  provide("kernels-community/flash-attn2", "flash-attn2");
  AttentionChoice choice = choose_attention("flash_attention_2", at::kCPU);
  EXPECT_EQ(choice.kernel->name(), "kernels-community/flash-attn2@v3 (flash-attn2)");
  EXPECT_EQ(choice.name, "flash_attention_2");
  choice = choose_attention("paged|flash_attention_2", at::kCPU);
  EXPECT_EQ(choice.kernel->name(), "kernels-community/flash-attn2@v3 (flash-attn2)");
  choice = choose_attention("kernels-community/flash-attn2@main:flash_attn_func", at::kCPU);
  EXPECT_EQ(choice.kernel->name(), "kernels-community/flash-attn2@main (flash-attn2)");
  EXPECT_EQ(choose_attention("paged|eager", at::kCPU).backend, AttentionBackend::kEager);
  EXPECT_EQ(choose_attention("sdpa", at::kCPU).backend, AttentionBackend::kSdpa);
}

TEST_F(AttentionByName, WhatIsNotThereOrNoAttentionIsRefused) {
  expect_error([] { choose_attention("flash_attention_3", at::kCPU); },
               "kernel.resolver.missing-package", HasSubstr("kernels-community/vllm-flash-attn3"));
  expect_error(
      [] { choose("norms"); }, "models.attn_implementation.not-attention",
      AllOf(HasSubstr("norm_wrong"), HasSubstr(R"({"Attention": "org/norms:Attention"})")));
  expect_error([] { choose_attention("flash", at::kCPU); }, "models.attn_implementation.unknown",
               HasSubstr("`flash_attention_2`"));
}

TEST_F(AttentionByName, PaddingBetweenTokensIsRefusedUnderAWindow) {
  const AttentionChoice choice = choose("flash-attn2");
  const at::NoGradGuard no_grad;
  at::Tensor padding = at::ones({1, 8}, at::kBool);
  padding[0][3] = false;
  const MaskRequest request{
      .num_new = 8, .padding = padding, .backend = choice.backend, .kernel = choice.kernel.get()};
  const at::Tensor x = at::randn({1, 8, 2, 16}).to(at::kBFloat16), kv = x.transpose(1, 2);
  const AttentionOptions options{.num_heads = 2, .num_kv_heads = 2, .head_dim = 16};
  expect_error([&] { attend(no_slot(), x, kv, kv, build_mask(request, 4), options); },
               "models.attn_implementation.refused", HasSubstr("between tokens"));
  attend(no_slot(), x, kv, kv, build_mask(request, 0), options);
}

TEST_F(AttentionByName, OurPackageServesInFloat32WithWindowsCapsAndGradients) {
  const AttentionChoice choice = choose_attention("graft", at::kCPU);
  EXPECT_EQ(choice.kernel->name(), "graft-kernels/attention");
  expect_forward(choice, kCases, at::kFloat);
  expect_forward(choice, kWindowsAndCaps, at::kFloat);
  expect_gradients(choice, kCases);
  expect_gradients(choice, kWindowsAndCaps);
  EXPECT_THAT(choice.kernel->refusal({.dtype = at::kFloat, .head_dim = 300}), HasSubstr("300"));
  EXPECT_EQ(choose_attention("graft-kernels/attention", at::kCPU).kernel->name(),
            "graft-kernels/attention");
}

}  // namespace
}  // namespace graft::nn

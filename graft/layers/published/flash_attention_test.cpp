// Flash attention's ops as an application calls them: over caches with new keys, with sinks, packed.
// (Masks, windows and gradients through a model's attention: nn/attention_kernel_test.cpp.)

#include "graft/layers/published/flash_attention.h"

#include <ATen/core/grad_mode.h>

#include "graft/layers/published/test_package.h"

namespace graft::layers::published {
namespace {

using testing::HasSubstr;

at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); }

// [S, H, D] each, float64; query s sees keys up to T - S + s.
at::Tensor exact(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const at::Tensor& sinks = {}) {
  const int64_t queries = query.size(0), keys = key.size(0), groups = query.size(1) / key.size(1);
  const auto spread = [&](const at::Tensor& x) {
    return x.to(at::kDouble).repeat_interleave(groups, 1);
  };
  at::Tensor scores = at::einsum("shd,thd->hst", {query.to(at::kDouble), spread(key)}) * 0.3;
  const at::Tensor unseen = at::ones({queries, keys}, at::kBool).triu(keys - queries + 1);
  scores = scores.masked_fill(unseen, -1e300);
  if (sinks.defined()) {
    const at::Tensor column = sinks.to(at::kDouble).view({-1, 1, 1}).expand({-1, queries, 1});
    scores = at::cat({scores, column}, -1);
  }
  const at::Tensor weights = at::softmax(scores, -1).narrow(-1, 0, keys);
  return at::einsum("hst,thd->shd", {weights, spread(value)});
}

class FlashPackages : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { at::manual_seed(12); }
  std::shared_ptr<const FlashAttention> flash_ = bind_flash_attention(*load_package(GetParam()));
  FlashOptions options_{.scale = 0.3, .causal = true};
};

TEST_P(FlashPackages, AppendToACacheAndAttendOverIt) {
  const at::NoGradGuard no_grad;
  at::Tensor keys = random({3, 10, 2, 16}), values = random({3, 10, 2, 16});
  const at::Tensor held = at::tensor({4, 7}, at::kInt), rows = at::tensor({2, 0}, at::kInt);
  const at::Tensor query = random({2, 2, 4, 16}), key = random({2, 2, 2, 16}),
                   value = random({2, 2, 2, 16});
  const at::Tensor before = keys.clone();
  const FlashResult got = flash_->forward_cache(
      query, keys, values, {.new_keys = key, .new_values = value, .lengths = held, .rows = rows},
      options_);
  for (int64_t b = 0; b < 2; ++b) {
    const int64_t row = rows[b].item<int64_t>(), length = held[b].item<int64_t>();
    // Written, though the schemas do not say so, and nothing else.
    EXPECT_TRUE(keys[row].narrow(0, length, 2).equal(key[b]));
    EXPECT_TRUE(values[row].narrow(0, length, 2).equal(value[b]));
    EXPECT_TRUE(keys[row].narrow(0, 0, length).equal(before[row].narrow(0, 0, length)));
    expect_close(
        got.out[b],
        exact(query[b], keys[row].narrow(0, 0, length + 2), values[row].narrow(0, 0, length + 2)),
        2e-2);
  }
  EXPECT_TRUE(keys[1].equal(before[1]));
}

TEST_P(FlashPackages, TakePackedSequencesEmptyOnesToo) {
  const at::NoGradGuard no_grad;
  const at::Tensor query = random({7, 4, 16}), key = random({9, 2, 16}), value = random({9, 2, 16});
  const PackedSequences sequences{at::tensor({0, 3, 3, 7}, at::kInt),
                                  at::tensor({0, 3, 3, 9}, at::kInt), 4, 6};
  const FlashResult got = flash_->forward_packed(query, key, value, sequences, options_);
  expect_close(got.out,
               at::cat({exact(query.narrow(0, 0, 3), key.narrow(0, 0, 3), value.narrow(0, 0, 3)),
                        exact(query.narrow(0, 3, 4), key.narrow(0, 3, 6), value.narrow(0, 3, 6))}),
               2e-2);
  EXPECT_EQ(got.lse.sizes(), (at::IntArrayRef{4, 7}));
}

TEST_P(FlashPackages, RefuseByNameWhatTheyCannotDo) {
  const at::Tensor x = random({1, 4, 2, 16});
  const auto refused = [&](const at::Tensor& query, const at::Tensor& key, FlashOptions options,
                           const char* text) {
    expect_error([&] { flash_->forward(query, key, key, options); }, "layers.published.unsupported",
                 HasSubstr(text));
  };
  refused(x.to(at::kFloat), x.to(at::kFloat), options_, "float16 or bfloat16");
  refused(x, x.to(at::kHalf), options_, "the query's dtype");
  refused(random({1, 4, 3, 16}), x, options_, "multiple of key heads");
  refused(random({1, 4, 2, 264}), random({1, 4, 2, 264}), options_, "at most 256");
  FlashOptions dropping = options_;
  dropping.dropout = 0.1;
  refused(x, x, dropping, "dropout");
  const at::Tensor odd = random({1, 4, 2, 20});
  expect_error([&] { flash_->forward_cache(odd, odd, odd, {}, options_); },
               "layers.published.unsupported", HasSubstr("multiple of 8"));
  expect_error([&] { flash_->forward_cache(x, x, x, {.new_keys = x}, options_); },
               "layers.published.unsupported", HasSubstr("both or none"));
  expect_error(
      [&] { flash_->forward_cache(x, x, x, {.lengths = at::ones({1}, at::kLong)}, options_); },
      "layers.published.unsupported", HasSubstr("int32"));
  expect_error([&] { flash_->forward_packed(x[0], x[0], x[0], {}, options_); },
               "layers.published.unsupported", HasSubstr("query_starts"));
}

INSTANTIATE_TEST_SUITE_P(Packages, FlashPackages,
                         testing::Values("flash-attn2", "flash-attn2-stable", "flash-attn3",
                                         "vllm-flash-attn3"));

TEST(FlashSinks, AreTakenByVllmAlone) {
  at::manual_seed(13);
  const auto vllm = bind_flash_attention(*load_package("vllm-flash-attn3"));
  const at::Tensor query = random({1, 5, 4, 16}), key = random({1, 5, 2, 16}),
                   value = random({1, 5, 2, 16}), sinks = random({4});
  FlashOptions options{.scale = 0.3, .causal = true, .sinks = sinks};
  {
    const at::NoGradGuard no_grad;
    expect_close(vllm->forward(query, key, value, options).out[0],
                 exact(query[0], key[0], value[0], sinks), 2e-2);
  }
  for (const char* other : {"flash-attn2", "flash-attn3"}) {
    const auto flash = bind_flash_attention(*load_package(other));
    expect_error([&] { flash->forward(query, key, value, options); },
                 "layers.published.unsupported", HasSubstr("sinks"));
  }
  options.sinks = sinks.to(at::kFloat);
  expect_error([&] { vllm->forward(query, key, value, options); }, "layers.published.unsupported",
               HasSubstr("bfloat16"));
  options.sinks = sinks.clone().requires_grad_();
  expect_error([&] { vllm->forward(query, key, value, options); }, "layers.published.unsupported",
               HasSubstr("no gradient"));
}

}  // namespace
}  // namespace graft::layers::published

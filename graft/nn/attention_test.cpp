#include "graft/nn/attention.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "graft/tensor/device.h"

namespace graft::nn {
namespace {

const AttentionSlot& unswapped() {
  struct Owner : torch::nn::Module {
    AttentionSlot slot{*this, {}};
  };
  static const auto owner = std::make_shared<Owner>();
  return owner->slot;
}

struct Case {
  int64_t num_new, num_past, window;
  bool padded;
};

// Which key each query may see, decided one by one.
bool allowed(const Case& c, const at::Tensor& padding, int64_t batch, int64_t query, int64_t key) {
  const int64_t position = c.num_past + query;
  if (key > position || (c.window > 0 && key <= position - c.window)) {
    return false;
  }
  return !c.padded || padding[batch][key].item<bool>();
}

// Attention in float64 with plain loops over the mask.
at::Tensor expected(const Case& c, const at::Tensor& padding, const at::Tensor& query,
                    const at::Tensor& key, const at::Tensor& value,
                    const AttentionOptions& options) {
  const int64_t groups = options.num_heads / options.num_kv_heads;
  const at::Tensor keys = key.to(at::kDouble).repeat_interleave(groups, 1);
  const at::Tensor values = value.to(at::kDouble).repeat_interleave(groups, 1);
  at::Tensor scores = at::matmul(query.to(at::kDouble), keys.transpose(2, 3)) * options.scale;
  if (options.softcap > 0) {
    scores = at::tanh(scores / options.softcap) * options.softcap;
  }
  for (int64_t b = 0; b < query.size(0); ++b) {
    for (int64_t q = 0; q < c.num_new; ++q) {
      for (int64_t k = 0; k < key.size(2); ++k) {
        if (!allowed(c, padding, b, q, k)) {
          scores.select(0, b).select(1, q).select(1, k).fill_(
              -std::numeric_limits<double>::infinity());
        }
      }
    }
  }
  const at::Tensor out = at::matmul(at::softmax(scores, -1), values);
  return out.transpose(1, 2).reshape({query.size(0), c.num_new, -1});
}

// Asked before libtorch is: its first question (a seed, say) settles whether it has CUDA.
const bool kHasCuda = tensor::cuda_available();

struct Setting {
  AttentionBackend backend;
  at::DeviceType device;
  at::ScalarType dtype;
};

class Attention : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (GetParam().device == at::kCUDA && !kHasCuda) {
      GTEST_SKIP() << "no CUDA device";
    }
    at::manual_seed(0);
  }
  // Random numbers that the dtype holds exactly, on the device.
  at::Tensor random(at::IntArrayRef sizes) const {
    return at::randn(sizes).to(GetParam().dtype).to(GetParam().device);
  }
};

TEST_P(Attention, FollowsCausalWindowedAndPaddedMasks) {
  const AttentionOptions options{.num_heads = 4, .num_kv_heads = 2, .head_dim = 8, .scale = 0.3};
  at::Tensor padding = at::ones({2, 32}, at::kBool);
  padding[1].slice(0, 0, 2).fill_(false);
  for (const Case& c :
       {Case{7, 0, 0, false}, Case{7, 5, 0, false}, Case{1, 9, 0, false}, Case{7, 0, 3, false},
        Case{5, 6, 4, false}, Case{1, 9, 3, false}, Case{1, 9, 20, false}, Case{7, 0, 0, true},
        Case{1, 9, 0, true}, Case{1, 9, 3, true}, Case{4, 5, 6, true}}) {
    const int64_t total = c.num_past + c.num_new;
    const at::Tensor mask2d = padding.slice(1, 0, total);
    const at::Tensor query = random({2, 4, c.num_new, 8});
    const at::Tensor key = random({2, 2, total, 8}), value = random({2, 2, total, 8});
    MaskRequest request{.num_new = c.num_new, .num_past = c.num_past};
    request.backend = GetParam().backend;
    request.dtype = GetParam().dtype;
    request.device = GetParam().device;
    if (c.padded) {
      request.padding = mask2d.to(GetParam().device);
    }
    const at::Tensor got = attend(unswapped(), query.transpose(1, 2), key, value,
                                  build_mask(request, c.window), options);
    const at::Tensor want = expected(c, mask2d, query.cpu(), key.cpu(), value.cpu(), options);
    // Rows that may see nothing (padding itself) are not defined.
    const at::Tensor rows = want.isnan().logical_not();
    const double tolerance = GetParam().dtype == at::kFloat ? 1e-5 : 2e-2;
    EXPECT_LT((got.cpu().to(at::kDouble) - want).masked_select(rows).abs().max().item<double>(),
              tolerance)
        << c.num_new << " new, " << c.num_past << " past, window " << c.window;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Backends, Attention,
    ::testing::Values(Setting{AttentionBackend::kSdpa, at::kCPU, at::kFloat},
                      Setting{AttentionBackend::kEager, at::kCPU, at::kFloat},
                      Setting{AttentionBackend::kSdpa, at::kCUDA, at::kFloat},
                      Setting{AttentionBackend::kSdpa, at::kCUDA, at::kBFloat16},
                      Setting{AttentionBackend::kSdpa, at::kCUDA, at::kHalf},
                      Setting{AttentionBackend::kEager, at::kCUDA, at::kBFloat16}));

TEST(Attention, CapsScoresSoftly) {
  at::manual_seed(1);
  const AttentionOptions options{
      .num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .scale = 3.0, .softcap = 2.0};
  const Case c{5, 0, 0, false};
  const at::Tensor query = at::randn({1, 2, 5, 4});
  const at::Tensor key = at::randn({1, 1, 5, 4}), value = at::randn({1, 1, 5, 4});
  const AttentionMask mask = build_mask({.num_new = 5, .backend = AttentionBackend::kEager}, 0);
  const at::Tensor got = attend(unswapped(), query.transpose(1, 2), key, value, mask, options);
  EXPECT_LT((got - expected(c, {}, query, key, value, options)).abs().max().item<double>(), 1e-5);
}

TEST(AttentionMask, IsLeftOutWhereNothingIsLost) {
  EXPECT_FALSE(build_mask({.num_new = 1, .num_past = 9}, 0).additive.defined());
  const AttentionMask prefill = build_mask({.num_new = 9}, 0);
  EXPECT_TRUE(prefill.causal);
  EXPECT_FALSE(prefill.additive.defined());
  const AttentionMask windowed = build_mask({.num_new = 1, .num_past = 9}, 4);
  EXPECT_EQ(windowed.first_key, 6);
  EXPECT_FALSE(windowed.additive.defined());
  EXPECT_TRUE(build_mask({.num_new = 2, .num_past = 3}, 0).additive.defined());
}

}  // namespace
}  // namespace graft::nn

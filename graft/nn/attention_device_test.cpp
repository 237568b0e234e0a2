// Attention by name on CUDA: a real FA3 build, loaded without Python, beside PyTorch and float64.
// GRAFT_TEST_FA3 names the package (tests/gpu/run_flash_attention.sh makes one of the wheel fa3-fwd).

#include <cmath>

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/nn/attention.h"
#include "graft/tensor/device.h"

namespace graft::nn {
namespace {

// Asked before libtorch is: its first question settles whether it has CUDA.
const bool kHasCuda = tensor::cuda_available();

struct Case {
  int64_t batch, queries, keys, heads, key_heads, head_dim, window;
  double softcap;
  bool padded;
};

std::string describe(const Case& c) {
  return "B" + std::to_string(c.batch) + " S" + std::to_string(c.queries) + " T" +
         std::to_string(c.keys) + " H" + std::to_string(c.heads) + "/" +
         std::to_string(c.key_heads) + " D" + std::to_string(c.head_dim) + " window " +
         std::to_string(c.window) + " cap " + std::to_string(c.softcap) +
         (c.padded ? ", padded" : "");
}

const AttentionSlot& no_slot() {
  struct Owner : torch::nn::Module {
    AttentionSlot slot{*this, {}};
  };
  static const auto owner = std::make_shared<Owner>();
  return owner->slot;
}

class FlashAttentionOnCuda : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!kHasCuda) {
      GTEST_SKIP() << "no CUDA device";
    }
    const auto package = env::get("GRAFT_TEST_FA3");
    if (!package) {
      GTEST_SKIP() << "GRAFT_TEST_FA3 names no package";
    }
    tensor::ensure_device(at::Device(at::kCUDA, 0));
    setenv("LOCAL_KERNELS", ("org/fa3=" + *package).c_str(), 1);
    choice_ = choose_attention("org/fa3", at::Device(at::kCUDA, 0));
    at::manual_seed(7);
  }
  void TearDown() override { unsetenv("LOCAL_KERNELS"); }

  at::Tensor random(at::IntArrayRef sizes) const {
    return at::randn(sizes).to(GetParam()).to(at::kCUDA);
  }

  static at::Tensor attended(const Case& c, const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, AttentionBackend backend,
                             const AttentionKernel* kernel) {
    MaskRequest request{.num_new = c.queries, .num_past = c.keys - c.queries};
    request.dtype = query.scalar_type();
    request.device = query.device();
    request.backend = backend;
    request.kernel = kernel;
    if (c.padded) {
      request.padding = at::ones({c.batch, c.keys}, at::kBool);
      request.padding[0].slice(0, 0, c.keys / 3).fill_(false);
      request.padding = request.padding.to(at::kCUDA);
    }
    return attend(no_slot(), query, key, value, build_mask(request, c.window),
                  {.num_heads = c.heads,
                   .num_kv_heads = c.key_heads,
                   .head_dim = c.head_dim,
                   .scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
                   .softcap = c.softcap});
  }

  // Rows whose query is real.
  static at::Tensor real(const Case& c, const at::Tensor& x) {
    const int64_t from = std::max<int64_t>(0, c.keys / 3 - (c.keys - c.queries));
    at::Tensor out = x.to(at::kDouble).cpu();
    if (c.padded) {
      out[0].slice(0, 0, from).zero_();
    }
    return out;
  }

  AttentionChoice choice_;
};

// An error of at most twice that of PyTorch's own formula in the same dtype.
TEST_P(FlashAttentionOnCuda, IsAsCloseToTheFormulaAsPyTorch) {
  const at::NoGradGuard no_grad;
  EXPECT_THAT(choice_.kernel->name(), testing::HasSubstr("(flash-attn3)"));
  for (const Case& c :
       {Case{2, 128, 128, 8, 8, 128, 0, 0.0, false}, Case{2, 1000, 1000, 8, 2, 128, 0, 0.0, false},
        Case{1, 127, 385, 8, 2, 64, 0, 0.0, false}, Case{2, 1, 777, 32, 8, 128, 0, 0.0, false},
        Case{2, 5, 777, 32, 8, 64, 0, 0.0, false}, Case{2, 300, 300, 8, 2, 128, 0, 0.0, true},
        Case{2, 1, 300, 8, 2, 128, 0, 0.0, true}, Case{1, 600, 600, 8, 2, 128, 100, 0.0, false},
        Case{1, 257, 257, 8, 2, 256, 0, 0.0, false}, Case{1, 257, 257, 8, 2, 128, 0, 20.0, false},
        Case{1, 7, 7, 4, 4, 60, 0, 0.0, false}}) {
    const at::Tensor
        query = random({c.batch, c.queries, c.heads, c.head_dim}),
        key = random({c.batch, c.key_heads, c.keys + 5, c.head_dim}).narrow(2, 0, c.keys),
        value = random({c.batch, c.key_heads, c.keys + 5, c.head_dim}).narrow(2, 0, c.keys);
    const at::Tensor exact =
        real(c, attended(c, query.to(at::kDouble), key.to(at::kDouble), value.to(at::kDouble),
                         AttentionBackend::kEager, nullptr));
    const auto error = [&](const at::Tensor& out) {
      return (real(c, out) - exact).abs().max().item<double>();
    };
    at::Tensor own;
    try {
      own = attended(c, query, key, value, AttentionBackend::kKernel, choice_.kernel.get());
    } catch (const std::exception& refused) {
      // A build may leave windows or caps out (the wheel has no windows); it then says so by name.
      std::printf("%s: refused by the build: %s\n", describe(c).c_str(), refused.what());
      EXPECT_TRUE(c.softcap > 0.0 || c.window > 0) << describe(c) << ": " << refused.what();
      EXPECT_THAT(refused.what(), testing::HasSubstr("does not support"));
      continue;
    }
    const double formula = error(attended(c, query, key, value, AttentionBackend::kEager, nullptr));
    const double ours = error(own);
    std::printf("%s: error %.2e, PyTorch's formula %.2e", describe(c).c_str(), ours, formula);
    if (c.softcap == 0.0) {
      const double sdpa = error(attended(c, query, key, value, AttentionBackend::kSdpa, nullptr));
      std::printf(", sdpa %.2e", sdpa);
    }
    std::printf("\n");
    EXPECT_LE(ours, 2.0 * formula + 1e-6) << describe(c);
  }
}

// Our own package by name, where it has an op for the device.
TEST_P(FlashAttentionOnCuda, GivesWhatOurPackageGives) {
  const at::NoGradGuard no_grad;
  const AttentionChoice ours = choose_attention("graft", at::Device(at::kCUDA, 0));
  for (const Case& c :
       {Case{2, 512, 512, 8, 2, 128, 0, 0.0, false}, Case{2, 1, 600, 8, 2, 64, 0, 0.0, false}}) {
    const at::Tensor query = random({c.batch, c.queries, c.heads, c.head_dim}),
                     key = random({c.batch, c.key_heads, c.keys, c.head_dim}),
                     value = random({c.batch, c.key_heads, c.keys, c.head_dim});
    const at::Tensor theirs = attended(c, query, key, value, choice_.backend, choice_.kernel.get()),
                     own = attended(c, query, key, value, ours.backend, ours.kernel.get());
    const double difference = (theirs - own).to(at::kDouble).abs().max().item<double>();
    std::printf("%s: largest difference from ours %.2e\n", describe(c).c_str(), difference);
    EXPECT_LT(difference, GetParam() == at::kHalf ? 4e-3 : 3.2e-2) << describe(c);
  }
}

TEST_P(FlashAttentionOnCuda, RefusesGradientsThatTheBuildHasNot) {
  const at::Tensor query = random({1, 16, 4, 64}).requires_grad_(), key = random({1, 4, 16, 64});
  const Case c{1, 16, 16, 4, 4, 64, 0, 0.0, false};
  const std::string why = choice_.kernel->refusal(
      {.device = at::kCUDA, .dtype = GetParam(), .head_dim = 64, .training = true});
  if (why.empty()) {
    // The op may be registered and still have been left out of the build, which then says so.
    const at::Tensor out = attended(c, query, key, key, choice_.backend, choice_.kernel.get());
    try {
      out.sum().backward();
      EXPECT_TRUE(query.grad().defined());
    } catch (const std::exception& refused) {
      EXPECT_THAT(refused.what(), testing::HasSubstr("does not support backward"));
    }
  } else {
    EXPECT_THAT(why, testing::HasSubstr("no backward"));
    EXPECT_THROW(attended(c, query, key, key, choice_.backend, choice_.kernel.get()),
                 IncompatibleError);
  }
}

// The wheel is built for bfloat16 alone.
INSTANTIATE_TEST_SUITE_P(Dtypes, FlashAttentionOnCuda, testing::Values(at::kBFloat16));

}  // namespace
}  // namespace graft::nn

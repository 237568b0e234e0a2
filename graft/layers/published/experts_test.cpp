// The compiled parts of megablocks and vllm-moe, with packages of the published schemas.

#include <cmath>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/layers/published/megablocks.h"
#include "graft/layers/published/moe.h"
#include "graft/layers/published/test_package.h"

namespace graft::layers::published {
namespace {

using testing::HasSubstr;

at::Tensor ints(std::vector<int64_t> values, at::ScalarType dtype = at::kInt) {
  return at::tensor(values, at::kLong).to(dtype);
}

TEST(MegablocksOps, KeepTheBooksOfExperts) {
  const Megablocks ops(*load_package("megablocks"));
  const auto [sorted, places] = ops.sort(ints({3, 1, 2, 1, 0, 3}), 2);
  EXPECT_TRUE(sorted.equal(ints({0, 1, 1, 2, 3, 3})));
  EXPECT_TRUE(places.equal(ints({4, 1, 3, 2, 0, 5})));
  const at::Tensor counts = ops.histogram(sorted, 5);
  EXPECT_TRUE(counts.equal(ints({1, 2, 1, 2, 0})));
  EXPECT_TRUE(ops.inclusive_cumsum(counts).equal(ints({1, 3, 4, 6, 6})));
  EXPECT_TRUE(ops.exclusive_cumsum(counts).equal(ints({0, 1, 3, 4, 6})));
  const at::Tensor rows = at::stack({counts, counts + 1});
  EXPECT_TRUE(ops.inclusive_cumsum(rows).equal(rows.cumsum(1).to(at::kInt)));
  EXPECT_TRUE(
      ops.block_indices(ints({128, 256}), 128, 2, 3).equal(ints({0, 1, 2, 3, 4, 5}, at::kShort)));
}

TEST(MegablocksOps, ReplicateJoinsAutograd) {
  const Megablocks ops(*load_package("megablocks"));
  const at::Tensor x = at::tensor({1.0, 2.0, 3.0}).to(at::kHalf).unsqueeze(0).requires_grad_();
  const at::Tensor out = ops.replicate(x, ints({2, 2, 5}), 5);
  EXPECT_TRUE(out.equal(at::tensor({1.0, 1.0, 3.0, 3.0, 3.0}).to(at::kHalf).unsqueeze(0)));
  const at::Tensor grad = torch::autograd::grad({out.sum()}, {x})[0];
  EXPECT_TRUE(grad.equal(at::tensor({2.0, 0.0, 3.0}).to(at::kHalf).unsqueeze(0)));
}

TEST(MegablocksOps, GroupedProductAndItsGradientsAreOneProductAGroup) {
  at::manual_seed(7);
  const Megablocks ops(*load_package("megablocks"));
  const at::Tensor sizes = ints({3, 0, 4}, at::kLong);
  for (const bool transposed : {false, true}) {
    const at::Tensor a = at::randn({7, 6}).to(at::kBFloat16).requires_grad_();
    const at::Tensor b = at::randn(transposed ? at::IntArrayRef{3, 5, 6} : at::IntArrayRef{3, 6, 5})
                             .to(at::kBFloat16)
                             .requires_grad_();
    const auto matrix = [&](int64_t e) {
      const at::Tensor own = b[e].to(at::kDouble);
      return transposed ? own.t() : own;
    };
    const at::Tensor wide = a.to(at::kDouble);
    const at::Tensor want = at::cat(
        {at::matmul(wide.narrow(0, 0, 3), matrix(0)), at::matmul(wide.narrow(0, 3, 4), matrix(2))});
    const at::Tensor got = ops.grouped_product(a, b, sizes, false, transposed);
    expect_close(got, want, 0.1);
    const at::Tensor grad = at::randn({7, 5}).to(at::kBFloat16);
    const auto own = torch::autograd::grad({got}, {a, b}, {grad}),
               right = torch::autograd::grad({want}, {a, b}, {grad.to(at::kDouble)});
    expect_close(own[0], right[0], 0.1);
    expect_close(own[1], right[1], 0.1);
  }
}

// Token by token, expert by expert.
at::Tensor exact_experts(const at::Tensor& x, const at::Tensor& up, const at::Tensor& down,
                         const at::Tensor& weights, const at::Tensor& ids,
                         const ExpertOptions& options) {
  at::Tensor out = at::zeros(x.sizes(), at::kDouble);
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t k = 0; k < ids.size(1); ++k) {
      const int64_t e = ids[t][k].item<int64_t>();
      at::Tensor h = at::matmul(up[e].to(at::kDouble), x[t].to(at::kDouble));
      if (options.gate_up_bias.defined()) {
        h = h + options.gate_up_bias[e].to(at::kDouble);
      }
      if (options.alpha) {
        const at::Tensor pairs = h.view({-1, 2});
        const at::Tensor gate = pairs.select(1, 0).clamp_max(*options.limit),
                         linear = pairs.select(1, 1).clamp(-*options.limit, *options.limit);
        h = (linear + 1.0) * gate * at::sigmoid(gate * *options.alpha);
      } else {
        h = at::silu(h.narrow(0, 0, h.size(0) / 2)) * h.narrow(0, h.size(0) / 2, h.size(0) / 2);
      }
      at::Tensor y = at::matmul(down[e].to(at::kDouble), h);
      if (options.down_bias.defined()) {
        y = y + options.down_bias[e].to(at::kDouble);
      }
      out[t] += weights[t][k].to(at::kDouble) * y;
    }
  }
  return out;
}

TEST(MegablocksOps, FusedExpertsOfTheCpuAreTheFormula) {
  at::manual_seed(8);
  const at::NoGradGuard no_grad;
  for (const char* package : {"megablocks", "megablocks-cpu"}) {
    const Megablocks ops(*load_package(package));
    const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
    const at::Tensor x = random({3, 8}), up = random({4, 12, 8}), down = random({4, 8, 6}),
                     weights = at::rand({3, 2});
    const at::Tensor ids = at::tensor({0, 3, 1, 2, 3, 1}, at::kInt).view({3, 2});
    for (const ExpertOptions& options :
         {ExpertOptions{},
          ExpertOptions{.gate_up_bias = random({4, 12}), .down_bias = random({4, 8})},
          ExpertOptions{.alpha = 1.702, .limit = 7.0}}) {
      const at::Tensor want = exact_experts(x, up, down, weights, ids, options);
      expect_close(ops.fused_experts(x, up, down, weights, ids, options), want, 0.3);
      ExpertOptions packed = options;
      packed.packed = true;
      expect_close(ops.fused_experts(x, ops.convert_weight_packed(up),
                                     ops.convert_weight_packed(down), weights, ids, packed),
                   want, 0.3, "packed");
    }
    const at::Tensor routed = random({3, 8});
    const at::Tensor one = at::zeros({3, 1}, at::kInt), ones = at::ones({3, 1});
    expect_close(ops.shared_expert(x, up[0], down[0], routed, 0.5),
                 exact_experts(x, up, down, ones, one, {}) + 0.5 * routed.to(at::kDouble), 0.3);
  }
}

TEST(MegablocksOps, FusedExpertsTakeWeightsInFewerBits) {
  at::manual_seed(8);
  const at::NoGradGuard no_grad;
  const Megablocks ops(*load_package("megablocks-cpu"));
  const at::Tensor x = at::randn({3, 64}).to(at::kBFloat16), weights = at::rand({3, 2}),
                   ids = at::tensor({0, 3, 1, 2, 3, 1}, at::kInt).view({3, 2});
  // Blocks of 16 rows and 32 columns.
  const auto blocks_of = [](const at::Tensor& scale) {
    return scale.repeat_interleave(16, 1).repeat_interleave(32, 2);
  };
  const auto eight = [](at::IntArrayRef sizes) {
    return (at::randn(sizes) * 8.0).to(at::kFloat8_e4m3fn);
  };
  const at::Tensor up = eight({4, 32, 64}), down = eight({4, 64, 16});
  ExpertOptions options{.weights = ExpertWeights::kFloat8,
                        .gate_up_scale = at::rand({4, 2, 2}) * 0.02,
                        .down_scale = at::rand({4, 4, 1}) * 0.02,
                        .block = {16, 32}};
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat).to(at::kDouble); };
  const at::Tensor up_numbers = wide(up) * blocks_of(options.gate_up_scale),
                   down_numbers = wide(down) * blocks_of(options.down_scale).narrow(2, 0, 16);
  expect_close(ops.fused_experts(x, up, down, weights, ids, options),
               exact_experts(x, up_numbers, down_numbers, weights, ids, {}), 0.1);
  options.gate_up_scale = options.gate_up_scale[0];
  options.down_scale = options.down_scale[0];
  const at::Tensor routed = at::zeros({3, 64}, at::kBFloat16);
  expect_close(
      ops.shared_expert(x, up[0], down[0], routed, 0.5, options),
      exact_experts(x, up_numbers, down_numbers, at::ones({3, 1}), at::zeros({3, 1}, at::kInt), {}),
      0.1);

  // 2 in the lower half, -1 in the upper, times a half.
  const at::Tensor fours = at::full({1, 64, 32}, 0xA4, at::kByte),
                   scale = at::full({1, 64, 2}, 126, at::kByte);
  const ExpertOptions four{.packed = true,
                           .weights = ExpertWeights::kMxFloat4,
                           .gate_up_scale = ops.convert_scale_packed(scale),
                           .down_scale = ops.convert_scale_packed(scale.narrow(2, 0, 1))};
  const at::Tensor row = at::tensor({1.0, -0.5}, at::kDouble).repeat({32});
  expect_close(ops.fused_experts(x, ops.convert_weight_packed(fours),
                                 ops.convert_weight_packed(fours.narrow(2, 0, 16).contiguous()),
                                 at::ones({3, 1}), at::zeros({3, 1}, at::kInt), four),
               exact_experts(x, row.repeat({1, 64, 1}), row.narrow(0, 0, 32).repeat({1, 64, 1}),
                             at::ones({3, 1}), at::zeros({3, 1}, at::kInt), {}),
               1.0);
}

TEST(MegablocksOps, WeightsThatAreNotWhatTheOptionsSayAreRefused) {
  const Megablocks ops(*load_package("megablocks-cpu"));
  const at::Tensor x = at::ones({2, 2}).to(at::kBFloat16),
                   plain = at::ones({1, 2, 2}).to(at::kBFloat16),
                   bytes = at::ones({1, 2, 2}, at::kByte), scale = at::ones({1, 1, 1});
  const auto refused = [&](const at::Tensor& weights, const ExpertOptions& options,
                           const char* text) {
    expect_error(
        [&] {
          ops.fused_experts(x, weights, weights, at::ones({2, 1}), at::zeros({2, 1}, at::kInt),
                            options);
        },
        "layers.published.unsupported", HasSubstr(text));
  };
  refused(bytes, {}, "BFloat16");
  refused(plain, {.gate_up_scale = scale, .down_scale = scale}, "expected none");
  refused(plain, {.weights = ExpertWeights::kFloat8, .gate_up_scale = scale, .down_scale = scale},
          "Float8_e4m3fn");
  const at::Tensor eight = plain.to(at::kFloat8_e4m3fn);
  refused(eight, {.weights = ExpertWeights::kFloat8, .gate_up_scale = scale},
          "one for each matrix");
  refused(bytes,
          {.packed = true,
           .weights = ExpertWeights::kMxFloat4,
           .gate_up_scale = scale,
           .down_scale = scale},
          "uint8");
  const at::Tensor exponents = at::ones({1, 2, 1}, at::kByte);
  refused(
      bytes,
      {.weights = ExpertWeights::kMxFloat4, .gate_up_scale = exponents, .down_scale = exponents},
      "packed");
}

TEST(MegablocksOps, OfAnotherDeviceAndWrongArgumentsAreRefusedByName) {
  const Megablocks cpu(*load_package("megablocks-cpu")), all(*load_package("megablocks"));
  expect_error([&] { cpu.sort(ints({1}), 1); }, "layers.published.missing-op", HasSubstr("`sort`"));
  expect_error(
      [&] {
        cpu.grouped_product(at::ones({1, 1}), at::ones({1, 1, 1}), ints({1}));
      },
      "layers.published.missing-op", HasSubstr("`gmm`"));
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { all.sort(at::ones({3}), 2); }, "int16, int32 or int64");
  refused([&] { all.sort(ints({1}), 40); }, "end_bit");
  const at::Tensor a = at::ones({2, 2}).to(at::kBFloat16),
                   b = at::ones({1, 2, 2}).to(at::kBFloat16);
  refused([&] { all.grouped_product(a.to(at::kHalf), b, ints({2}, at::kLong)); }, "bfloat16");
  refused([&] { all.grouped_product(a, b, ints({2})); }, "int64 on the CPU");
  refused(
      [&] {
        all.fused_experts(a, b, b, at::ones({2, 1}), ints({0, 0}, at::kLong).view({2, 1}));
      },
      "int32");
  refused(
      [&] {
        all.fused_experts(a, b, b, at::ones({2, 1}), ints({0, 0}).view({2, 1}), {.alpha = 1.0});
      },
      "both or neither");
}

TEST(MoeSteps, ChooseSumAndAlign) {
  at::manual_seed(9);
  const at::NoGradGuard no_grad;
  const MoeOps ops(*load_package("moe"));
  const at::Tensor logits = at::randn({5, 6});
  const TopExperts top = ops.top_experts(logits, 2);
  const auto want = at::softmax(logits, -1).topk(2);
  expect_close(top.weights, std::get<0>(want), 1e-6);
  EXPECT_TRUE(top.experts.equal(std::get<1>(want).to(at::kInt)));
  const at::Tensor x = at::randn({5, 2, 8});
  expect_close(ops.sum(x), x.sum(1), 1e-6);
  const auto halves = at::randn({3, 8}).chunk(2, -1);
  expect_close(ops.silu_and_mul(at::cat({halves[0], halves[1]}, -1)),
               at::silu(halves[0]) * halves[1], 1e-6);

  const ExpertBlocks blocks = ops.align(top.experts, 6, 4);
  const int64_t used = blocks.padded_count.item<int64_t>();
  EXPECT_EQ(used % 4, 0);
  int64_t seen = 0;
  for (int64_t i = 0; i < used; ++i) {
    const int64_t token = blocks.token_ids[i].item<int64_t>();
    if (token < top.experts.numel()) {
      EXPECT_EQ(top.experts.flatten()[token].item<int64_t>(),
                blocks.expert_ids[i / 4].item<int64_t>());
      ++seen;
    }
  }
  EXPECT_EQ(seen, top.experts.numel());
}

TEST(MoeSteps, QuantizeToEightBits) {
  const at::NoGradGuard no_grad;
  const MoeOps ops(*load_package("moe"));
  const at::Tensor x = at::randn({4, 16});
  const auto restored = [&](const at::Tensor& values, const at::Tensor& scale) {
    return values.to(at::kFloat) * scale;
  };
  const at::Tensor scale = at::full({1}, 0.01);
  expect_close(restored(ops.quantize(x, scale), scale), x, 0.2);
  const Float8 whole = ops.quantize_dynamic(x), rows = ops.quantize_per_token(x);
  expect_close(restored(whole.values, whole.scale), x, 0.2);
  expect_close(restored(rows.values, rows.scale), x, 0.2);
  const Float8 bounded = ops.quantize_per_token(x, at::full({1}, 0.5));
  expect_close(restored(bounded.values, bounded.scale), x.clamp(-0.5, 0.5), 0.05);
}

TEST(MoeSteps, RefuseByNameWhatTheyCannotDo) {
  const MoeOps ops(*load_package("moe"));
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { ops.top_experts(at::ones({2, 4}, at::kHalf), 2); }, "float32");
  refused([&] { ops.top_experts(at::ones({2, 4}), 5); }, "number of experts");
  refused([&] { ops.align(at::zeros({2, 2}, at::kLong), 4, 4); }, "int32");
  refused([&] { ops.silu_and_mul(at::ones({2, 3})); }, "two halves");
  expect_error(
      [&] {
        ops.sum(at::ones({1, 2, 3}).requires_grad_());
      },
      "layers.adapter.no-backward", HasSubstr("no backward"));
  expect_error([] { MoeOps ops(*load_package("activation")); }, "kernel.loader.missing-op",
               HasSubstr("topk_softmax"));
}

TEST(MoeSteps, MultiplyByWeightsOfFourAndEightBits) {
  at::manual_seed(10);
  const at::NoGradGuard no_grad;
  const MoeOps ops(*load_package("moe"));
  const at::Tensor x = at::randn({3, 64}).to(at::kBFloat16),
                   ids = at::tensor({0, 3, 1, 2, 3, 1}, at::kInt).view({3, 2});
  for (const int64_t bits : {4, 8}) {
    const QuantizedExperts experts{
        .weights = at::full({4, 8, 64 * bits / 8}, bits == 4 ? 0x9B : 131, at::kByte),
        .scales = at::full({4, 8, 2}, 0.5).to(at::kBFloat16),
        .bits = bits};
    const at::Tensor factors = at::rand({3, 2});
    const at::Tensor got = ops.multiply(x, experts, ops.align(ids, 4, 16), 2, 16, factors);
    // 11 - 8 and 9 - 8; or 131 - 128.
    const at::Tensor row = (bits == 4 ? at::tensor({1.5, 0.5}, at::kDouble).repeat({32})
                                      : at::full({64}, 1.5, at::kDouble));
    const at::Tensor sums = at::matmul(x.to(at::kDouble), row).view({3, 1, 1});
    expect_close(got, sums.expand({3, 2, 8}) * factors.unsqueeze(-1), 0.3);
  }
  const auto refused = [&](const at::Tensor& in, const QuantizedExperts& experts,
                           const char* text) {
    expect_error([&] { ops.multiply(in, experts, ops.align(ids, 4, 16), 2, 16); },
                 "layers.published.unsupported", HasSubstr(text));
  };
  const at::Tensor weights = at::zeros({4, 8, 32}, at::kByte),
                   scales = at::ones({4, 8, 2}).to(at::kBFloat16);
  refused(x.to(at::kFloat), {.weights = weights, .scales = scales}, "float16 or bfloat16");
  refused(x, {.weights = weights, .scales = scales, .bits = 3}, "4 or 8");
  refused(x, {.weights = weights, .scales = scales, .bits = 8}, "hidden * bits / 8");
  refused(x, {.weights = weights, .scales = scales.to(at::kFloat)}, "dtype of the input");
  refused(x, {.weights = weights, .scales = at::ones({4, 8, 16}).to(at::kBFloat16)}, "groups");
  refused(x, {.weights = weights, .scales = scales, .zeros = at::zeros({4, 8, 2}, at::kByte)},
          "outputs * bits / 8");
}

}  // namespace
}  // namespace graft::layers::published

// megablocks' native part, as published: its bookkeeping and grouped product (CUDA), its fused experts (CPU).

#include "graft/canary/op_checks.h"
#include "graft/layers/published/megablocks.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;
using published::ExpertOptions;
using published::Megablocks;

void check_counting(OpChecks& checks, const Megablocks& ops) {
  const std::vector<int64_t> numbers = {5, 2, 7, 2, 13, 0, 5, 1, 2, 9};
  const at::Tensor plain = at::tensor(numbers, at::kLong);
  for (const auto dtype : {at::kInt, at::kShort}) {
    checks.check("sort", "", {dtype}, [&]() -> Answers {
      // By the lowest three bits: 13 is 5, 9 is 1.
      const auto [keys, places] = ops.sort(checks.integers(numbers, dtype), 3);
      const at::Tensor order = plain.bitwise_and(7).argsort(/*stable=*/true, 0, false);
      return {same(keys, plain.index_select(0, order).to(dtype)), same(places, order.to(dtype))};
    });
  }
  checks.check("histogram", "", {at::kInt}, [&]() -> Answers {
    return {same(ops.histogram(checks.integers(numbers), 16),
                 at::bincount(plain, {}, 16).to(at::kInt))};
  });
  const at::Tensor sums = plain.cumsum(0).to(at::kInt);
  checks.check("inclusive_cumsum", "", {at::kInt}, [&]() -> Answers {
    return {same(ops.inclusive_cumsum(checks.integers(numbers)), sums)};
  });
  checks.check("exclusive_cumsum", "", {at::kInt}, [&]() -> Answers {
    return {same(ops.exclusive_cumsum(checks.integers(numbers)), sums - plain.to(at::kInt))};
  });
  checks.check("indices", "", {at::kShort}, [&]() -> Answers {
    // Blocks of 128 rows: one of the first expert, two of the second, none of the third, one of the last.
    const at::Tensor got =
        ops.block_indices(checks.integers({128, 384, 384, 512}), 128, /*rows=*/4, /*columns=*/2);
    return {same(got, at::tensor({0, 1, 2, 3, 2, 3, 6, 7}, at::kShort))};
  });
}

void check_replication(OpChecks& checks, const Megablocks& ops) {
  const at::Tensor bins = checks.integers({2, 2, 5});
  const at::Tensor places = at::tensor({0, 0, 2, 2, 2}, at::kLong);
  checks.check("replicate_forward", "", {at::kHalf}, [&]() -> Answers {
    const at::Tensor x = checks.normal({1, 3});
    return {same(ops.replicate(x, bins, 5), x.to(at::kCPU).index_select(1, places))};
  });
  checks.check_gradients("replicate_backward", "", {at::kHalf}, [&]() -> Differentiable {
    return {
        {checks.normal({1, 3})},
        [&](const auto& in) -> std::vector<at::Tensor> { return {ops.replicate(in[0], bins, 5)}; },
        [places](const auto& in) -> std::vector<at::Tensor> {
          return {in[0].index_select(1, places)};
        }};
  });
}

// Rows of a [T, H] in groups of 3, 0 and 4, each with its matrix of b.
at::Tensor multiply_groups(const at::Tensor& a, const at::Tensor& b, bool transposed) {
  const auto matrix = [&](int64_t e) { return transposed ? b[e].t() : b[e]; };
  return at::cat(
      {at::matmul(a.narrow(0, 0, 3), matrix(0)), at::matmul(a.narrow(0, 3, 4), matrix(2))});
}

void check_grouped_product(OpChecks& checks, const Megablocks& ops) {
  const at::Tensor sizes = at::tensor({3, 0, 4}, at::kLong);  // on the CPU
  for (const bool transposed : {false, true}) {
    const char* form = transposed ? "transposed" : "";
    const auto factors = [&]() -> std::vector<at::Tensor> {
      return {
          checks.normal({7, 64}),
          checks.normal(transposed ? at::IntArrayRef{3, 32, 64} : at::IntArrayRef{3, 64, 32}, 0.2)};
    };
    checks.check("gmm", form, {at::kBFloat16}, [&]() -> Answers {
      const auto in = factors();
      return {{ops.grouped_product(in[0], in[1], sizes, false, transposed),
               multiply_groups(to_exact(in[0]), to_exact(in[1]), transposed),
               {}}};
    });
    checks.check_gradients(
        "gmm", transposed ? "gradients, transposed" : "gradients", {at::kBFloat16},
        [&, transposed]() -> Differentiable {
          return {factors(),
                  [&, transposed](const auto& in) -> std::vector<at::Tensor> {
                    return {ops.grouped_product(in[0], in[1], sizes, false, transposed)};
                  },
                  [transposed](const auto& in) -> std::vector<at::Tensor> {
                    return {multiply_groups(in[0], in[1], transposed)};
                  }};
        });
  }
}

constexpr int64_t kTokens = 3, kExperts = 4, kHidden = 64, kInner = 64;

struct Experts {
  at::Tensor x, gate_up, down;  // [T, H], [E, 2 I, H], [E, H, I]
  at::Tensor weights, ids;      // [T, 2]
};

Experts make_experts(OpChecks& checks, int64_t hidden = kHidden, int64_t inner = kInner) {
  return {checks.normal({kTokens, hidden}), checks.normal({kExperts, 2 * inner, hidden}, 0.1),
          checks.normal({kExperts, hidden, inner}, 0.1), checks.wide({kTokens, 2}).softmax(-1),
          checks.integers({0, 3, 1, 2, 3, 1}).view({kTokens, 2})};
}

// SwiGLU of the halves, or gpt-oss's clamped one of interleaved pairs, in float64.
at::Tensor activate(const at::Tensor& h, const ExpertOptions& options) {
  if (!options.alpha) {
    const auto halves = h.chunk(2, -1);
    return at::silu(halves[0]) * halves[1];
  }
  const at::Tensor pairs = h.view({-1, 2});
  const at::Tensor gate = pairs.select(1, 0).clamp_max(*options.limit),
                   linear = pairs.select(1, 1).clamp(-*options.limit, *options.limit);
  return (linear + 1.0) * gate * at::sigmoid(gate * *options.alpha);
}

// gate_up, down  as numbers, in float64
at::Tensor run_experts(const Experts& in, const at::Tensor& gate_up, const at::Tensor& down,
                       const ExpertOptions& options) {
  const at::Tensor x = to_exact(in.x), weights = to_exact(in.weights), ids = in.ids.to(at::kCPU);
  const auto biased = [](const at::Tensor& y, const at::Tensor& bias, int64_t expert) {
    return bias.defined() ? y + to_exact(bias)[expert] : y;
  };
  at::Tensor out = at::zeros(x.sizes(), x.options());
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t k = 0; k < ids.size(1); ++k) {
      const int64_t e = ids[t][k].item<int64_t>();
      const at::Tensor h =
          activate(biased(at::matmul(gate_up[e], x[t]), options.gate_up_bias, e), options);
      out[t] += weights[t][k] * biased(at::matmul(down[e], h), options.down_bias, e);
    }
  }
  return out;
}

at::Tensor run_experts(const Experts& in, const ExpertOptions& options) {
  return run_experts(in, to_exact(in.gate_up), to_exact(in.down), options);
}

void check_fused_experts(OpChecks& checks, const Megablocks& ops) {
  struct Form {
    const char* name;
    bool biased, clamped;
  };
  for (const Form& form : {Form{"", false, false}, Form{"biases", true, false},
                           Form{"clamped, interleaved", false, true}}) {
    checks.check("fused_experts", form.name, {at::kBFloat16}, [&]() -> Answers {
      const Experts in = make_experts(checks);
      ExpertOptions options;
      if (form.biased) {
        options.gate_up_bias = checks.normal({kExperts, 2 * kInner}, 0.3);
        options.down_bias = checks.normal({kExperts, kHidden}, 0.3);
      }
      if (form.clamped) {
        options.alpha = 1.702;
        options.limit = 0.5;
      }
      return {{ops.fused_experts(in.x, in.gate_up, in.down, in.weights, in.ids, options),
               run_experts(in, options),
               {}}};
    });
  }
  // What a packed weight looks like is the kernel's own matter: the product says whether it is right.
  checks.check("convert_weight_packed", "", {at::kBFloat16}, [&]() -> Answers {
    const Experts in = make_experts(checks);
    return {{ops.fused_experts(in.x, ops.convert_weight_packed(in.gate_up),
                               ops.convert_weight_packed(in.down), in.weights, in.ids,
                               {.packed = true}),
             run_experts(in, {}),
             {}}};
  });
  checks.check("shared_expert", "", {at::kBFloat16}, [&]() -> Answers {
    const Experts in = make_experts(checks);
    const at::Tensor routed = checks.normal({kTokens, kHidden});
    const at::Tensor h = activate(at::matmul(to_exact(in.x), to_exact(in.gate_up)[0].t()), {});
    return {{ops.shared_expert(in.x, in.gate_up[0], in.down[0], routed, 0.5),
             at::matmul(h, to_exact(in.down)[0].t()) + 0.5 * to_exact(routed),
             {}}};
  });
}

// A matrix of each expert in fewer bits, and the numbers that it stands for, in float64 on the CPU.
struct Quantized {
  at::Tensor weights, scale, numbers;
};

// In 8 bits, with a factor for each block of 128 rows and columns; no two of them alike.
Quantized quantize_blocks(OpChecks& checks, const at::Tensor& weights) {
  constexpr int64_t kBlock = 128;
  const at::Tensor scale = checks.wide({weights.size(0), (weights.size(1) + kBlock - 1) / kBlock,
                                        (weights.size(2) + kBlock - 1) / kBlock})
                                   .abs() *
                               0.002 +
                           0.0005;
  const auto spread = scale.repeat_interleave(kBlock, 1)
                          .narrow(1, 0, weights.size(1))
                          .repeat_interleave(kBlock, 2)
                          .narrow(2, 0, weights.size(2));
  const at::Tensor eight = round_to(weights.to(at::kFloat) / spread, at::kFloat8_e4m3fn);
  return {eight, scale, wide_numbers(eight) * to_exact(spread)};
}

// In 4 bits, with a power of two for each 32 of a row.
Quantized quantize_groups(OpChecks& checks, at::IntArrayRef sizes) {
  constexpr int64_t kGroup = 32;
  const at::Tensor bytes = checks.wide({sizes[0], sizes[1], sizes[2] / 2})
                               .mul(80.0)
                               .add(128.0)
                               .clamp(0.0, 255.0)
                               .to(at::kByte);
  const at::Tensor exponents =
      checks.wide({sizes[0], sizes[1], sizes[2] / kGroup}).round().clamp(-2.0, 2.0) + 122.0;
  const at::Tensor values = at::tensor(
      {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0},
      at::TensorOptions(at::kDouble));
  const at::Tensor here = bytes.to(at::kCPU);
  const at::Tensor halves =
      at::stack({here.bitwise_and(15), here.bitwise_right_shift(4)}, -1).flatten(-2);
  return {bytes, exponents.to(at::kByte),
          values.take(halves.to(at::kLong)) *
              (to_exact(exponents) - 127.0).exp2().repeat_interleave(kGroup, 2)};
}

void check_quantized_experts(OpChecks& checks, const Megablocks& ops) {
  for (const bool packed : {false, true}) {
    checks.check_optional(
        "fused_experts", packed ? "8 bits, packed" : "8 bits", {at::kBFloat16}, [&]() -> Answers {
          const Experts in = make_experts(checks, 256, 128);
          const Quantized up = quantize_blocks(checks, in.gate_up),
                          down = quantize_blocks(checks, in.down);
          const auto stored = [&](const at::Tensor& weights) {
            return packed ? ops.convert_weight_packed(weights) : weights;
          };
          const ExpertOptions options{.packed = packed,
                                      .weights = published::ExpertWeights::kFloat8,
                                      .gate_up_scale = up.scale,
                                      .down_scale = down.scale};
          return {{ops.fused_experts(in.x, stored(up.weights), stored(down.weights), in.weights,
                                     in.ids, options),
                   run_experts(in, up.numbers, down.numbers, options),
                   {}}};
        });
  }
  // gpt-oss's, as it is published: clamped, interleaved, with biases. What a packed scale looks like is the kernel's own
  // matter too.
  const auto four_bits = [&]() -> Answers {
    const Experts in = make_experts(checks, 128, 64);
    const Quantized up = quantize_groups(checks, {kExperts, 128, 128}),
                    down = quantize_groups(checks, {kExperts, 128, 64});
    const ExpertOptions options{.gate_up_bias = checks.normal({kExperts, 128}, 0.3),
                                .down_bias = checks.normal({kExperts, 128}, 0.3),
                                .alpha = 1.702,
                                .limit = 7.0,
                                .packed = true,
                                .weights = published::ExpertWeights::kMxFloat4,
                                .gate_up_scale = ops.convert_scale_packed(up.scale),
                                .down_scale = ops.convert_scale_packed(down.scale)};
    return {
        {ops.fused_experts(in.x, ops.convert_weight_packed(up.weights),
                           ops.convert_weight_packed(down.weights), in.weights, in.ids, options),
         run_experts(in, up.numbers, down.numbers, options),
         {}}};
  };
  checks.check_optional("fused_experts", "4 bits", {at::kBFloat16}, four_bits);
  checks.check_optional("convert_scale_packed", "4 bits", {at::kBFloat16}, four_bits);
  checks.check_optional("shared_expert", "8 bits", {at::kBFloat16}, [&]() -> Answers {
    const Experts in = make_experts(checks, 256, 128);
    const Quantized up = quantize_blocks(checks, in.gate_up),
                    down = quantize_blocks(checks, in.down);
    const at::Tensor routed = checks.normal({kTokens, 256});
    const ExpertOptions options{.weights = published::ExpertWeights::kFloat8,
                                .gate_up_scale = up.scale[1],
                                .down_scale = down.scale[1]};
    const at::Tensor h = activate(at::matmul(to_exact(in.x), up.numbers[1].t()), {});
    return {{ops.shared_expert(in.x, up.weights[1], down.weights[1], routed, 0.5, options),
             at::matmul(h, down.numbers[1].t()) + 0.5 * to_exact(routed),
             {}}};
  });
}

}  // namespace

void check_megablocks(OpChecks& checks) {
  if (!checks.has("gmm") && !checks.has("fused_experts")) {
    return;
  }
  const Megablocks ops(checks.kernel());
  check_counting(checks, ops);
  check_replication(checks, ops);
  check_grouped_product(checks, ops);
  check_fused_experts(checks, ops);
  check_quantized_experts(checks, ops);
}

}  // namespace graft::canary

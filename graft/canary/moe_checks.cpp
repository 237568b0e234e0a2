// The compiled steps of vllm-moe around a mixture of experts, as published.

#include <algorithm>

#include "graft/canary/op_checks.h"
#include "graft/layers/published/moe.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;
using published::MoeOps;

constexpr double kLargest = 448.0;  // of float8_e4m3fn
constexpr OpChecks::Dtypes kAll = {at::kFloat, at::kHalf, at::kBFloat16};

void check_routing(OpChecks& checks, const MoeOps& ops) {
  checks.check("topk_softmax", "", {at::kFloat}, [&]() -> Answers {
    const at::Tensor logits = checks.normal({5, 8});
    const auto top = ops.top_experts(logits, 2);
    const auto [weights, experts] = to_exact(logits).softmax(-1).topk(2);
    const at::Tensor sources =
        at::arange(10, at::TensorOptions(at::kInt)).view({2, 5}).t().contiguous();
    return {{top.weights, weights, {}},
            same(top.experts, experts.to(at::kInt)),
            same(top.sources, sources)};
  });
  checks.check("moe_sum", "", kAll, [&]() -> Answers {
    const at::Tensor x = checks.normal({5, 2, 64});
    return {{ops.sum(x), to_exact(x).sum(1), {}}};
  });
  checks.check("silu_and_mul", "", kAll, [&]() -> Answers {
    const at::Tensor x = checks.normal({5, 128});
    const auto halves = to_exact(x).chunk(2, -1);
    return {{ops.silu_and_mul(x), at::silu(halves[0]) * halves[1], {}}};
  });
}

// The order of the tokens within one expert is the kernel's own matter.
void check_alignment(OpChecks& checks, const MoeOps& ops) {
  checks.check("moe_align_block_size", "", {at::kInt}, [&]() -> Answers {
    constexpr int64_t kExperts = 8, kBlock = 4;
    const std::vector<int64_t> experts = {0, 3, 1, 3, 3, 7, 3, 0, 1, 3};
    const auto num_tokens = static_cast<int64_t>(experts.size());
    const auto got = ops.align(checks.integers(experts).view({5, 2}), kExperts, kBlock);
    std::vector<int64_t> block_experts, rows;
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const auto count = std::count(experts.begin(), experts.end(), expert);
      for (int64_t place = 0; place < count; place += kBlock) {
        block_experts.push_back(expert);
      }
    }
    const auto num_blocks = static_cast<int64_t>(block_experts.size());
    const at::Tensor tokens = got.token_ids.to(at::kCPU).narrow(0, 0, num_blocks * kBlock);
    // Each token once, the rest padding; and each in a block of its expert.
    for (int64_t i = 0; i < num_blocks * kBlock; ++i) {
      rows.push_back(std::min(i, num_tokens));
    }
    const at::Tensor is_token = tokens.lt(num_tokens).logical_and(tokens.ge(0));
    const at::Tensor own = at::tensor(experts, at::kLong)
                               .index_select(0, at::where(is_token, tokens, 0).to(at::kLong));
    const at::Tensor theirs = at::tensor(block_experts, at::kLong).repeat_interleave(kBlock);
    const at::Tensor misplaced = own.ne(theirs).logical_and(is_token).sum();
    return {same(got.padded_count, at::tensor({num_blocks * kBlock}, at::kInt)),
            same(got.expert_ids.narrow(0, 0, num_blocks), at::tensor(block_experts, at::kInt)),
            same(std::get<0>(tokens.sort()), at::tensor(rows, at::kInt)),
            same(misplaced, at::zeros({}, at::TensorOptions(at::kLong)))};
  });
}

// How far 8-bit values lie from `exact`, in units of what rounding to the nearest may cost (half a step of three bits,
// or of the smallest numbers): at most one each.
Answer nearest(const at::Tensor& values, const at::Tensor& exact) {
  const at::Tensor got = values.to(at::kCPU).to(at::kFloat).to(at::kDouble);
  const at::Tensor step = exact.abs() * 0x1p-4 + 0x1p-10;
  const at::Tensor excess = ((got - exact).abs() / step - 1.001).clamp_min(0.0);
  return {excess, at::zeros_like(excess), at::zeros_like(excess)};
}

void check_eight_bits(OpChecks& checks, const MoeOps& ops) {
  const auto scaled = [](const at::Tensor& x, const at::Tensor& scale) {
    return (to_exact(x) / to_exact(scale)).clamp(-kLargest, kLargest);
  };
  checks.check("static_scaled_fp8_quant", "", kAll, [&]() -> Answers {
    const at::Tensor x = checks.normal({4, 64});
    const at::Tensor scale = checks.wide({1}).fill_(0.00625);  // the largest values saturate
    const at::Tensor values = ops.quantize(x, scale);
    return {nearest(values, scaled(x, scale))};
  });
  checks.check("dynamic_scaled_fp8_quant", "", kAll, [&]() -> Answers {
    const at::Tensor x = checks.normal({4, 64});
    const auto [values, scale] = ops.quantize_dynamic(x);
    const at::Tensor right = (to_exact(x).abs().max() / kLargest).view({1});
    return {{scale, right, right.to(at::kFloat)}, nearest(values, scaled(x, scale))};
  });
  for (const bool bounded : {false, true}) {
    checks.check("dynamic_per_token_scaled_fp8_quant", bounded ? "bounded" : "", kAll,
                 [&]() -> Answers {
                   const at::Tensor x = checks.normal({4, 64});
                   const at::Tensor bound = bounded ? checks.wide({1}).fill_(1.5) : at::Tensor();
                   const auto [values, scale] = ops.quantize_per_token(x, bound);
                   at::Tensor largest = to_exact(x).abs().amax({-1}, true);
                   largest = bounded ? largest.clamp_max(1.5) : largest;
                   const at::Tensor right = largest / kLargest;
                   return {{scale, right, right.to(at::kFloat)}, nearest(values, scaled(x, scale))};
                 });
  }
}

}  // namespace

void check_moe_steps(OpChecks& checks) {
  if (!checks.has("topk_softmax")) {
    return;
  }
  const MoeOps ops(checks.kernel());
  check_routing(checks, ops);
  check_alignment(checks, ops);
  check_eight_bits(checks, ops);
}

}  // namespace graft::canary

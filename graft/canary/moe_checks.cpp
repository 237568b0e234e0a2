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
void check_alignment(OpChecks& checks, const MoeOps& ops, const char* op, int64_t num_experts) {
  checks.check(op, "", {at::kInt}, [&]() -> Answers {
    constexpr int64_t kBlock = 4;
    const int64_t last = num_experts - 1;
    const std::vector<int64_t> experts = {0, 3, 1, 3, 3, last, 3, 0, 1, 3};
    const auto num_tokens = static_cast<int64_t>(experts.size());
    const auto got = ops.align(checks.integers(experts).view({5, 2}), num_experts, kBlock);
    std::vector<int64_t> block_experts, rows;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
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

// Of 4 bits the lower half of a byte is the first of two along `dim`.
at::Tensor halves(const at::Tensor& bytes, int64_t bits, int64_t dim) {
  return bits == 8 ? bytes
                   : at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, dim + 1)
                         .flatten(dim, dim + 1);
}

void check_quantized_product(OpChecks& checks, const MoeOps& ops) {
  constexpr int64_t kTokens = 5, kExperts = 4, kHidden = 128, kOutputs = 64, kGroup = 32,
                    kBlock = 4;
  struct Form {
    const char* name;
    int64_t bits;
    bool has_zeros, weighted;
  };
  for (const Form& form : {Form{"4 bits", 4, false, false}, Form{"4 bits, zeros", 4, true, true},
                           Form{"8 bits", 8, false, true}, Form{"8 bits, zeros", 8, true, false}}) {
    checks.check("moe_wna16_gemm", form.name, {at::kHalf, at::kBFloat16}, [&]() -> Answers {
      const auto bytes = [&](at::IntArrayRef sizes) {
        return checks.wide(sizes).mul(80.0).add(128.0).clamp(0.0, 255.0).to(at::kByte);
      };
      const at::Tensor x = checks.normal({kTokens, kHidden});
      published::QuantizedExperts experts{
          .weights = bytes({kExperts, kOutputs, kHidden * form.bits / 8}),
          .scales = checks.normal({kExperts, kOutputs, kHidden / kGroup}).abs() * 0.01 + 0.001,
          .bits = form.bits};
      if (form.has_zeros) {
        experts.zeros = bytes({kExperts, kOutputs * form.bits / 8, kHidden / kGroup});
      }
      const at::Tensor factors = form.weighted ? checks.wide({kTokens, 2}).abs() : at::Tensor();
      const at::Tensor ids = checks.integers({0, 3, 1, 3, 3, 2, 3, 0, 1, 3}).view({kTokens, 2});
      const at::Tensor zeros =
          form.has_zeros
              ? to_exact(halves(experts.zeros, form.bits, 1)).repeat_interleave(kGroup, 2)
              : at::full({1}, form.bits == 4 ? 8.0 : 128.0, at::TensorOptions(at::kDouble));
      const at::Tensor numbers = (to_exact(halves(experts.weights, form.bits, 2)) - zeros) *
                                 to_exact(experts.scales).repeat_interleave(kGroup, 2);
      at::Tensor right = at::einsum(
          "tknh,th->tkn", {numbers.index_select(0, ids.to(at::kCPU).to(at::kLong).flatten())
                               .view({kTokens, 2, kOutputs, kHidden}),
                           to_exact(x)});
      if (form.weighted) {
        right = right * to_exact(factors).unsqueeze(-1);
      }
      return {{ops.multiply(x, experts, ops.align(ids, kExperts, kBlock), 2, kBlock, factors),
               right,
               {}}};
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
  check_alignment(checks, ops, "moe_align_block_size", 8);
  check_alignment(checks, ops, "sgl_moe_align_block_size", 256);
  check_eight_bits(checks, ops);
  check_quantized_product(checks, ops);
}

}  // namespace graft::canary

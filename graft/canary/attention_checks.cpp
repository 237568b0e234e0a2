// Flash attention, as published, against softmax(scale Q K^T) V.

#include <limits>

#include "graft/canary/op_checks.h"
#include "graft/layers/published/flash_attention.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;

constexpr OpChecks::Dtypes kHalves = {at::kHalf, at::kBFloat16};
constexpr double kScale = 0.125;

// query [B, S, Hq, D], key and value [B, T, Hkv, D], all float64: query s of S sees keys up to T - S + s.
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  bool causal) {
  const int64_t shared = query.size(2) / key.size(2);
  const auto heads = [](const at::Tensor& x, int64_t repeats) {
    return x.repeat_interleave(repeats, 2).transpose(1, 2);
  };
  at::Tensor scores = at::matmul(heads(query, 1), heads(key, shared).transpose(-1, -2)).mul(kScale);
  if (causal) {
    const at::Tensor hidden = at::ones({query.size(1), key.size(1)}, at::TensorOptions(at::kBool))
                                  .triu(key.size(1) - query.size(1) + 1);
    scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  }
  return at::matmul(scores.softmax(-1), heads(value, shared)).transpose(1, 2);
}

struct Attended {
  at::Tensor query, key, value;
};

// Two sequences one after the other, 2 and 3 queries over 4 and 3 keys.
std::vector<at::Tensor> make_packed(OpChecks& checks) {
  return {checks.normal({5, 4, 64}), checks.normal({7, 2, 64}, 0.7),
          checks.normal({7, 2, 64}, 0.9)};
}

at::Tensor attend_packed(const std::vector<at::Tensor>& in) {
  const auto one = [&](int64_t query, int64_t num_queries, int64_t key, int64_t num_keys) {
    const auto part = [](const at::Tensor& x, int64_t start, int64_t size) {
      return x.narrow(0, start, size).unsqueeze(0);
    };
    return attend(part(in[0], query, num_queries), part(in[1], key, num_keys),
                  part(in[2], key, num_keys), /*causal=*/true);
  };
  return at::cat({one(0, 2, 0, 4), one(2, 3, 4, 3)}, 1).squeeze(0);
}

void check_packed(OpChecks& checks, const published::FlashAttention& flash,
                  const std::string& forward, const std::string& backward) {
  const published::PackedSequences sequences{.query_starts = checks.integers({0, 2, 5}),
                                             .key_starts = checks.integers({0, 4, 7}),
                                             .max_query_length = 3,
                                             .max_key_length = 4};
  const auto call = [&](const std::vector<at::Tensor>& in) {
    return flash.forward_packed(in[0], in[1], in[2], sequences, {.scale = kScale, .causal = true})
        .out;
  };
  checks.check(forward, "packed sequences", kHalves, [&]() -> Answers {
    const auto in = make_packed(checks);
    return {{call(in), attend_packed({to_exact(in[0]), to_exact(in[1]), to_exact(in[2])}), {}}};
  });
  checks.check_gradients(backward, "packed sequences", kHalves, [&]() -> Differentiable {
    return {make_packed(checks),
            [&](const auto& in) -> std::vector<at::Tensor> { return {call(in)}; },
            [](const auto& in) -> std::vector<at::Tensor> { return {attend_packed(in)}; }};
  });
}

void check_cache(OpChecks& checks, const published::FlashAttention& flash, const std::string& op) {
  checks.check(op, "a step over a cache", kHalves, [&]() -> Answers {
    const at::Tensor query = checks.normal({2, 1, 4, 64}), keys = checks.normal({2, 9, 2, 64}, 0.7),
                     values = checks.normal({2, 9, 2, 64}, 0.9),
                     key = checks.normal({2, 1, 2, 64}, 0.7),
                     value = checks.normal({2, 1, 2, 64}, 0.9);
    const std::vector<int64_t> lengths = {3, 8};
    const at::Tensor right_keys = keys.clone(), right_values = values.clone();
    std::vector<at::Tensor> outs;
    for (int64_t row = 0; row < 2; ++row) {
      right_keys[row][lengths[row]].copy_(key[row][0]);
      right_values[row][lengths[row]].copy_(value[row][0]);
      const auto seen = [&](const at::Tensor& all) {
        return to_exact(all).narrow(0, row, 1).narrow(1, 0, lengths[row] + 1);
      };
      outs.push_back(
          attend(to_exact(query).narrow(0, row, 1), seen(right_keys), seen(right_values), true));
    }
    const published::FlashCache cache{
        .new_keys = key, .new_values = value, .lengths = checks.integers(lengths)};
    const auto got =
        flash.forward_cache(query, keys, values, cache, {.scale = kScale, .causal = true});
    return {{got.out, at::cat(outs), {}}, same(keys, right_keys), same(values, right_values)};
  });
}

}  // namespace

void check_flash_attention(OpChecks& checks) {
  if (!published::is_flash_attention(checks.kernel())) {
    return;
  }
  const auto flash = published::bind_flash_attention(checks.kernel());
  const auto name_of = [&](const char* op, const char* other) {
    return checks.has(op) ? op : other;
  };
  const std::string forward = checks.has("fwd") ? "fwd" : "varlen_fwd";
  const auto inputs = [&]() -> Attended {
    return {checks.normal({2, 5, 4, 64}), checks.normal({2, 7, 2, 64}, 0.7),
            checks.normal({2, 7, 2, 64}, 0.9)};
  };
  for (const bool causal : {false, true}) {
    const published::FlashOptions options{.scale = kScale, .causal = causal};
    const char* form = causal ? "causal" : "";
    checks.check(forward, form, kHalves, [&]() -> Answers {
      const auto [query, key, value] = inputs();
      return {{flash->forward(query, key, value, options).out,
               attend(to_exact(query), to_exact(key), to_exact(value), causal),
               {}}};
    });
    checks.check_gradients("bwd", form, kHalves, [&]() -> Differentiable {
      const auto [query, key, value] = inputs();
      return {{query, key, value},
              [&](const auto& in) -> std::vector<at::Tensor> {
                return {flash->forward(in[0], in[1], in[2], options).out};
              },
              [causal](const auto& in) -> std::vector<at::Tensor> {
                return {attend(in[0], in[1], in[2], causal)};
              }};
    });
  }
  check_packed(checks, *flash, name_of("varlen_fwd", "fwd"), name_of("varlen_bwd", "bwd"));
  if (flash->has_cache_op()) {
    check_cache(checks, *flash, name_of("fwd_kvcache", "fwd"));
  }
}

}  // namespace graft::canary

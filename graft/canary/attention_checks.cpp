// Flash attention and paged attention, as published, against softmax(scale Q K^T) V.

#include <limits>

#include "graft/canary/op_checks.h"
#include "graft/layers/published/flash_attention.h"
#include "graft/layers/published/paged_attention.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;

constexpr OpChecks::Dtypes kHalves = {at::kHalf, at::kBFloat16};
constexpr OpChecks::Dtypes kAll = {at::kFloat, at::kHalf, at::kBFloat16};
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

// A cache of kBlocks blocks in which the sequences lie scattered, and the same as plain rows.
struct Pages {
  static constexpr int64_t kBlocks = 60, kPlaces = 16, kHeads = 2, kSize = 32;

  published::PagedCache cache;
  published::PagedLengths lengths;
  std::vector<at::Tensor> keys, values;  // [length, heads, size] in float64
};

// Rows [P, b, Hkv, D] as the ops hold keys, [P, Hkv, D / x, b, x], and values, [P, Hkv, D, b].
at::Tensor key_blocks(const at::Tensor& rows) {
  const int64_t x = 16 / static_cast<int64_t>(rows.element_size());
  return rows.view({rows.size(0), rows.size(1), rows.size(2), rows.size(3) / x, x})
      .permute({0, 2, 3, 1, 4})
      .contiguous();
}
at::Tensor value_blocks(const at::Tensor& rows) { return rows.permute({0, 2, 3, 1}).contiguous(); }

Pages make_pages(OpChecks& checks, const std::vector<int64_t>& lengths) {
  Pages pages;
  const std::vector<int64_t> sizes = {Pages::kBlocks, Pages::kPlaces, Pages::kHeads, Pages::kSize};
  const at::Tensor keys = checks.normal(sizes, 0.7), values = checks.normal(sizes, 0.9);
  pages.cache = {.keys = key_blocks(keys), .values = value_blocks(values)};
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const int64_t columns = (longest + Pages::kPlaces - 1) / Pages::kPlaces;
  std::vector<int64_t> table;
  int64_t next = Pages::kBlocks;  // from the last block to the first
  for (const int64_t length : lengths) {
    std::vector<int64_t> blocks;
    for (int64_t start = 0; start < length; start += Pages::kPlaces) {
      blocks.push_back(--next);
    }
    const at::Tensor chosen = at::tensor(blocks, at::kLong);
    const auto rows_of = [&](const at::Tensor& all) {
      return to_exact(all).index_select(0, chosen).flatten(0, 1).narrow(0, 0, length);
    };
    pages.keys.push_back(rows_of(keys));
    pages.values.push_back(rows_of(values));
    blocks.resize(static_cast<size_t>(columns), 0);
    table.insert(table.end(), blocks.begin(), blocks.end());
  }
  pages.lengths = {.block_tables = checks.integers(table).view({-1, columns}),
                   .lengths = checks.integers(lengths),
                   .max_length = longest};
  return pages;
}

// query [T, Hq, D], a token for each sequence; alibi adds slope times the distance to the last key.
at::Tensor attend_pages(const at::Tensor& query, const Pages& pages, const at::Tensor& alibi) {
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < query.size(0); ++t) {
    const auto spread = [&](const at::Tensor& x) {
      return x.repeat_interleave(query.size(1) / Pages::kHeads, 1);
    };
    const at::Tensor key = spread(pages.keys[t]), value = spread(pages.values[t]);
    at::Tensor scores = at::einsum("hd,thd->ht", {to_exact(query[t]), key}) * kScale;
    if (alibi.defined()) {
      const at::Tensor back = at::arange(key.size(0), at::TensorOptions(at::kDouble)) -
                              static_cast<double>(key.size(0) - 1);
      scores = scores + to_exact(alibi).unsqueeze(1) * back;
    }
    rows.push_back(at::einsum("ht,thd->hd", {scores.softmax(-1), value}));
  }
  return at::stack(rows);
}

void check_paged_decode(OpChecks& checks, const published::PagedAttention& attention) {
  const auto attend_over = [&](const std::vector<int64_t>& lengths, bool biased) {
    return [&checks, &attention, lengths, biased]() -> Answers {
      const Pages pages = make_pages(checks, lengths);
      const at::Tensor query =
          checks.normal({static_cast<int64_t>(lengths.size()), 4, Pages::kSize});
      const at::Tensor alibi = biased ? checks.wide({4}, 0.1).abs() : at::Tensor();
      return {{attention.attend(query, pages.cache, pages.lengths, kScale, alibi),
               attend_pages(query, pages, alibi),
               {}}};
    };
  };
  checks.check("paged_attention_v1", "", kAll, attend_over({5, 33, 16}, false));
  checks.check("paged_attention_v1", "alibi", kAll, attend_over({5, 33, 16}, true));
  checks.check("paged_attention_v2", "two partitions", kAll, attend_over({700, 3}, false));
  checks.check("paged_attention_v2", "two partitions, alibi", kAll, attend_over({700, 3}, true));
}

void check_paged_moves(OpChecks& checks, const published::PagedAttention& attention) {
  const std::vector<int64_t> sizes = {4, Pages::kPlaces, Pages::kHeads, Pages::kSize};
  const std::vector<int64_t> slots = {37, 2, 40};  // block 16 + place
  const auto write = [&](bool flat) {
    return [&, flat]() -> Answers {
      const at::Tensor keys = checks.normal(sizes), values = checks.normal(sizes),
                       key = checks.normal({3, Pages::kHeads, Pages::kSize}),
                       value = checks.normal({3, Pages::kHeads, Pages::kSize});
      const at::Tensor places = checks.integers(slots, at::kLong);
      const auto written = [&](const at::Tensor& rows, const at::Tensor& row) {
        at::Tensor all = rows.clone();
        all.flatten(0, 1).index_copy_(0, places, row);
        return all;
      };
      const at::Tensor right_keys = written(keys, key), right_values = written(values, value);
      if (flat) {
        const published::PagedCache cache{.keys = keys, .values = values};
        attention.write_flash(key, value, cache, places);
        return {same(keys, right_keys), same(values, right_values)};
      }
      const published::PagedCache cache{.keys = key_blocks(keys), .values = value_blocks(values)};
      attention.write(key, value, cache, places);
      return {same(cache.keys, key_blocks(right_keys)),
              same(cache.values, value_blocks(right_values))};
    };
  };
  checks.check("reshape_and_cache", "", kAll, write(false));
  checks.check("reshape_and_cache_flash", "", kAll, write(true));
  checks.check("copy_blocks", "", {at::kFloat, at::kBFloat16}, [&]() -> Answers {
    const at::Tensor keys = key_blocks(checks.normal(sizes)),
                     values = value_blocks(checks.normal(sizes));
    const at::Tensor right_keys = keys.clone(), right_values = values.clone();
    for (const at::Tensor& all : {right_keys, right_values}) {
      all[0].copy_(all[3]);
      all[1].copy_(all[2]);
    }
    attention.copy_blocks({keys}, {values}, checks.integers({3, 0, 2, 1}, at::kLong).view({2, 2}));
    return {same(keys, right_keys), same(values, right_values)};
  });
  checks.check("swap_blocks", "", {at::kFloat, at::kBFloat16}, [&]() -> Answers {
    const at::Tensor from = key_blocks(checks.normal(sizes)), to = key_blocks(checks.normal(sizes));
    const at::Tensor right = to.clone();
    right[0].copy_(from[3]);
    right[1].copy_(from[2]);
    attention.swap_blocks(from, to, at::tensor({3, 0, 2, 1}, at::kLong).view({2, 2}));
    return {same(to, right)};
  });
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

void check_paged_attention(OpChecks& checks) {
  if (!checks.has("paged_attention_v1")) {
    return;
  }
  const published::PagedAttention attention(checks.kernel());
  check_paged_decode(checks, attention);
  check_paged_moves(checks, attention);
}

}  // namespace graft::canary

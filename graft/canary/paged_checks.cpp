// Paged attention, as published, over caches in the query's dtype and in 8 bits, against softmax(scale Q K^T) V; and
// what writes, moves and converts those caches.

#include <algorithm>

#include "graft/canary/op_checks.h"
#include "graft/layers/published/paged_attention.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;

constexpr OpChecks::Dtypes kAll = {at::kFloat, at::kHalf, at::kBFloat16};
constexpr double kScale = 0.125;
// Of 8-bit caches. Not the same, and no powers of two: one for the other is seen.
constexpr double kKeyScale = 0.03, kValueScale = 0.05;

// How a cache holds numbers.
struct Holding {
  const char* form;
  const char* dtype;                 // that the ops are told
  at::ScalarType eight = at::kByte;  // of the numbers; kByte: in the dtype under check

  bool is_plain() const { return eight == at::kByte; }
};
constexpr Holding kPlain{"", "auto"}, kFloat8{"8 bits", "fp8", at::kFloat8_e4m3fn},
    kFloat8Wide{"8 bits of e5m2", "fp8_e5m2", at::kFloat8_e5m2};

// Rows of a cache as it holds them, and the numbers that this stands for, in float64 on the CPU.
struct Held {
  at::Tensor stored, numbers;
};

Held hold(const at::Tensor& rows, const Holding& holding, double scale) {
  if (holding.is_plain()) {
    return {rows, to_exact(rows)};
  }
  const at::Tensor eight = round_to(rows.to(at::kFloat) / scale, holding.eight);
  return {eight.view(at::kByte), wide_numbers(eight) * scale};
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

published::PagedCache make_cache(OpChecks& checks, const Holding& holding, const at::Tensor& keys,
                                 const at::Tensor& values) {
  published::PagedCache cache{.keys = keys, .values = values, .dtype = holding.dtype};
  if (!holding.is_plain()) {
    cache.key_scale = checks.wide({1}).fill_(kKeyScale);
    cache.value_scale = checks.wide({1}).fill_(kValueScale);
  }
  return cache;
}

Pages make_pages(OpChecks& checks, const std::vector<int64_t>& lengths, const Holding& holding) {
  Pages pages;
  const std::vector<int64_t> sizes = {Pages::kBlocks, Pages::kPlaces, Pages::kHeads, Pages::kSize};
  const Held keys = hold(checks.normal(sizes, 0.7), holding, kKeyScale),
             values = hold(checks.normal(sizes, 0.9), holding, kValueScale);
  pages.cache = make_cache(checks, holding, key_blocks(keys.stored), value_blocks(values.stored));
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
      return all.index_select(0, chosen).flatten(0, 1).narrow(0, 0, length);
    };
    pages.keys.push_back(rows_of(keys.numbers));
    pages.values.push_back(rows_of(values.numbers));
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

std::string joined(const char* first, const char* second) {
  return std::string(first) + (*first != 0 && *second != 0 ? ", " : "") + second;
}

void check_paged_decode(OpChecks& checks, const published::PagedAttention& attention,
                        const Holding& holding) {
  const auto attend_over = [&](const std::vector<int64_t>& lengths, bool biased) {
    return [&, lengths, biased]() -> Answers {
      const Pages pages = make_pages(checks, lengths, holding);
      const at::Tensor query =
          checks.normal({static_cast<int64_t>(lengths.size()), 4, Pages::kSize});
      const at::Tensor alibi = biased ? checks.wide({4}, 0.1).abs() : at::Tensor();
      return {{attention.attend(query, pages.cache, pages.lengths, kScale, alibi),
               attend_pages(query, pages, alibi),
               {}}};
    };
  };
  const auto check = [&](const char* op, const char* form, const std::vector<int64_t>& lengths,
                         bool biased) {
    checks.check(op, joined(form, holding.form), kAll, attend_over(lengths, biased));
  };
  check("paged_attention_v1", "", {5, 33, 16}, false);
  check("paged_attention_v2", "two partitions", {700, 3}, false);
  if (holding.is_plain()) {
    check("paged_attention_v1", "alibi", {5, 33, 16}, true);
    check("paged_attention_v2", "two partitions, alibi", {700, 3}, true);
  }
}

// Rows that are written to a cache and what the cache should hold then. Plain: the same numbers. In 8 bits: the nearest
// ones where it was written, what was there before elsewhere.
class Written {
 public:
  Written(OpChecks& checks, const Holding& holding, double scale)
      : holding_(holding), scale_(scale) {
    before_ = hold(checks.normal({4, Pages::kPlaces, Pages::kHeads, Pages::kSize}), holding, scale)
                  .stored.clone();
    rows_ = checks.normal({static_cast<int64_t>(kSlots.size()), Pages::kHeads, Pages::kSize});
    if (!holding.is_plain()) {
      rows_[0][0][0] = 1e4;  // beyond the largest number: saturates
    }
    places_ = checks.integers(kSlots, at::kLong);
  }

  const at::Tensor& before() const { return before_; }
  const at::Tensor& rows() const { return rows_; }
  const at::Tensor& places() const { return places_; }

  // after  [P, b, Hkv, D]
  void judge(const at::Tensor& after, Answers& answers) const {
    if (holding_.is_plain()) {
      at::Tensor right = before_.clone();
      right.flatten(0, 1).index_copy_(0, places_, rows_);
      answers.push_back(same(after, right));
      return;
    }
    const at::Tensor flat = after.flatten(0, 1);
    answers.push_back(
        nearest(flat.index_select(0, places_).view(holding_.eight), to_exact(rows_) / scale_));
    at::Tensor untouched = flat.clone();
    untouched.index_copy_(0, places_, before_.flatten(0, 1).index_select(0, places_));
    answers.push_back(same(untouched.view(before_.sizes()), before_));
  }

 private:
  static inline const std::vector<int64_t> kSlots = {37, 2, 40};  // block 16 + place

  Holding holding_;
  double scale_;
  at::Tensor before_, rows_, places_;
};

// What key_blocks() and value_blocks() did, undone.
at::Tensor key_rows(const at::Tensor& blocks) {
  return blocks.permute({0, 3, 1, 2, 4}).flatten(3, 4).contiguous();
}
at::Tensor value_rows(const at::Tensor& blocks) {
  return blocks.permute({0, 3, 1, 2}).contiguous();
}

void check_paged_writes(OpChecks& checks, const published::PagedAttention& attention,
                        const Holding& holding) {
  checks.check("reshape_and_cache", holding.form, kAll, [&]() -> Answers {
    const Written keys(checks, holding, kKeyScale), values(checks, holding, kValueScale);
    const auto cache =
        make_cache(checks, holding, key_blocks(keys.before()), value_blocks(values.before()));
    attention.write(keys.rows(), values.rows(), cache, keys.places());
    Answers answers;
    keys.judge(key_rows(cache.keys), answers);
    values.judge(value_rows(cache.values), answers);
    return answers;
  });
  checks.check("reshape_and_cache_flash", holding.form, kAll, [&]() -> Answers {
    const Written keys(checks, holding, kKeyScale), values(checks, holding, kValueScale);
    const auto cache = make_cache(checks, holding, keys.before().clone(), values.before().clone());
    attention.write_flash(keys.rows(), values.rows(), cache, keys.places());
    Answers answers;
    keys.judge(cache.keys, answers);
    values.judge(cache.values, answers);
    return answers;
  });
}

void check_conversion(OpChecks& checks, const published::PagedAttention& attention) {
  const std::vector<int64_t> sizes = {3, Pages::kHeads, Pages::kSize, Pages::kPlaces};
  checks.check("convert_fp8", "to 8 bits", kAll, [&]() -> Answers {
    const at::Tensor from = checks.normal(sizes);
    from[0][0][0][0] = -1e4;
    const at::Tensor to = at::zeros(sizes, from.options().dtype(at::kByte));
    attention.convert_fp8(to, from, kKeyScale, "fp8");
    return {nearest(to.view(at::kFloat8_e4m3fn), to_exact(from) / kKeyScale)};
  });
  checks.check("convert_fp8", "from 8 bits", kAll, [&]() -> Answers {
    const at::Tensor plain = checks.normal(sizes);
    const Held from = hold(plain, kFloat8, kValueScale);
    const at::Tensor to = at::zeros_like(plain);
    attention.convert_fp8(to, from.stored, kValueScale, "fp8_e4m3");
    return {{to, from.numbers, {}}};
  });
}

void check_paged_moves(OpChecks& checks, const published::PagedAttention& attention) {
  const std::vector<int64_t> sizes = {4, Pages::kPlaces, Pages::kHeads, Pages::kSize};
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

}  // namespace

void check_paged_attention(OpChecks& checks) {
  if (!checks.has("paged_attention_v1")) {
    return;
  }
  const published::PagedAttention attention(checks.kernel());
  for (const Holding& holding : {kPlain, kFloat8, kFloat8Wide}) {
    check_paged_decode(checks, attention, holding);
    check_paged_writes(checks, attention, holding);
  }
  check_conversion(checks, attention);
  check_paged_moves(checks, attention);
}

}  // namespace graft::canary

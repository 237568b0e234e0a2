// Calls of attention over a cache and the formula in float64 that they are held against, on either device.
#pragma once

#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::attention {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t batch = 1, queries = 1, keys = 1, heads = 1, key_heads = 1, head_dim = 64;
};

struct Cache {
  at::Tensor lse, lengths, table, mask, sinks;
  double softcap = 0.0;
  int64_t window = 0;
  bool causal = true;
  int64_t splits = 0;
};

inline c10::IValue optional(const at::Tensor& tensor) {
  return tensor.defined() ? c10::IValue(tensor) : c10::IValue();
}

// Parameterised by dtype.
template <c10::DeviceType kDevice>
class CacheTest : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (kDevice == at::kCUDA && !testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(11);
  }
  static const testing::Package& package() {
    return testing::Package::get(
        "attention", kDevice == at::kCUDA ? testing::kCudaVariant : testing::kCpuVariant);
  }

  static at::Tensor random(at::IntArrayRef sizes) {
    return at::randn(sizes).to(kDevice, GetParam());
  }
  static at::Tensor ints(const std::vector<int32_t>& values) {
    return at::tensor(values, at::kInt).to(kDevice);
  }

  static at::Tensor decode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const Cache& cache) {
    at::Tensor out = at::full(query.sizes(), 777.0, query.options());  // every element is written
    package()("attention_decode_out", out, optional(cache.lse), query, key, value,
              optional(cache.lengths), optional(cache.table), optional(cache.mask),
              optional(cache.sinks), scale_of(query), cache.softcap, cache.window, cache.causal,
              cache.splits);
    return out;
  }
  static double scale_of(const at::Tensor& query) {
    return 1.0 / std::sqrt(static_cast<double>(query.size(3)));
  }

  struct Result {
    at::Tensor out, lse;
  };

  // The formula on the CPU, in the dtype of its arguments; softmax in float32 or wider.
  static Result formula(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const Cache& cache) {
    const int64_t groups = query.size(2) / key.size(1), keys = key.size(2), queries = query.size(1);
    const auto wide = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor scores =
        at::matmul(query.transpose(1, 2), key.repeat_interleave(groups, 1).transpose(2, 3)) *
        scale_of(query);
    if (cache.softcap > 0.0) {
      scores = at::tanh(scores / cache.softcap) * cache.softcap;
    }
    scores = scores.to(wide);
    if (cache.mask.defined()) {
      scores = scores + cache.mask.cpu().to(wide);
    }
    const at::Tensor lengths = cache.lengths.defined() ? cache.lengths.cpu().to(at::kLong)
                                                       : at::full({query.size(0)}, keys, at::kLong);
    const at::Tensor place =
        lengths.view({-1, 1, 1, 1}) - queries + at::arange(queries).view({-1, 1});
    const at::Tensor position = at::arange(keys);
    at::Tensor hidden = position >= lengths.view({-1, 1, 1, 1});
    if (cache.causal) {
      hidden = hidden.logical_or(position > place);
    }
    if (cache.window > 0) {
      hidden = hidden.logical_or(position <= place - cache.window);
    }
    scores = scores.masked_fill(hidden, -kInfinity);
    if (cache.sinks.defined()) {
      const at::Tensor sinks = cache.sinks.cpu().to(wide).view({1, -1, 1, 1});
      scores = at::cat({scores, sinks.expand({scores.size(0), -1, queries, 1})}, -1);
    }
    const at::Tensor weights = at::nan_to_num(at::softmax(scores, -1), 0.0).narrow(-1, 0, keys);
    return {at::matmul(weights.to(query.scalar_type()), value.repeat_interleave(groups, 1))
                .transpose(1, 2),
            at::logsumexp(scores, {-1})};
  }

  // `key` and `value` in one piece, as the formula wants them; `ours` may have read pages.
  static void expect_close(const at::Tensor& ours, const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value, const Cache& cache, const std::string& what) {
    const at::Tensor q = query.cpu(), k = key.cpu(), v = value.cpu();
    const Result exact = formula(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), cache);
    const at::Tensor theirs = formula(q, k, v, cache).out;
    const auto distance = [&](const at::Tensor& x) {
      return (x.to(at::kDouble).cpu() - exact.out).abs().max().item().toDouble();
    };
    const double largest = v.to(at::kDouble).abs().max().item().toDouble();
    // Half a unit of the result's rounding; in float32, of a sum of these products in any order.
    const double floor = GetParam() == at::kFloat ? 0x1p-22 * largest
                                                  : (GetParam() == at::kHalf ? 0x1p-12 : 0x1p-9) *
                                                        exact.out.abs().max().item().toDouble();
    EXPECT_LE(distance(ours), 2 * distance(theirs) + floor) << what;
    if (cache.lse.defined()) {
      const at::Tensor lse = cache.lse.cpu().to(at::kDouble);
      const at::Tensor finite = exact.lse.isfinite();
      EXPECT_TRUE(at::equal(lse.isfinite(), finite)) << what;
      EXPECT_TRUE(at::equal(lse.masked_fill(finite, 0), exact.lse.masked_fill(finite, 0))) << what;
      EXPECT_LE(
          (lse - exact.lse).masked_fill(finite.logical_not(), 0).abs().max().item().toDouble(),
          GetParam() == at::kFloat ? 2e-6 : 2e-5)
          << what;
    }
  }

  static void expect_right(const Shape& s, Cache cache = {}) {
    const at::Tensor query = random({s.batch, s.queries, s.heads, s.head_dim});
    const at::Tensor key = random({s.batch, s.key_heads, s.keys, s.head_dim});
    const at::Tensor value = random({s.batch, s.key_heads, s.keys, s.head_dim});
    cache.lse = at::full({s.batch, s.heads, s.queries}, 777.0, query.options().dtype(at::kFloat));
    const at::Tensor ours = decode(query, key, value, cache);
    expect_close(ours, query, key, value, cache,
                 "B" + std::to_string(s.batch) + " S" + std::to_string(s.queries) + " T" +
                     std::to_string(s.keys) + " H" + std::to_string(s.heads) + "/" +
                     std::to_string(s.key_heads) + " D" + std::to_string(s.head_dim) + " window " +
                     std::to_string(cache.window) + " splits " + std::to_string(cache.splits));
  }

  struct AppendCase {
    int64_t head_dim, queries, page;  // page 0: a cache in one piece
    bool interleaved, float_tables, positions;
  };

  // x [B, S, H, D] turned by rows `at` [B, S] of the tables, every operation rounded to their type.
  static at::Tensor turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& at, bool interleaved) {
    const int64_t size = cos.size(1);
    const at::Tensor a = x.narrow(-1, 0, size).to(cos.scalar_type());
    const auto rows = [&](const at::Tensor& table) {
      return table.index_select(0, at.flatten()).view({at.size(0), at.size(1), 1, size});
    };
    at::Tensor across;
    if (interleaved) {
      const at::Tensor pairs = a.unflatten(-1, {size / 2, 2});
      across = at::stack({pairs.select(-1, 1).neg(), pairs.select(-1, 0)}, -1).flatten(-2);
    } else {
      across = at::cat({a.narrow(-1, size / 2, size / 2).neg(), a.narrow(-1, 0, size / 2)}, -1);
    }
    return at::cat({(a * rows(cos) + across * rows(sin)).to(x.scalar_type()),
                    x.narrow(-1, size, x.size(-1) - size)},
                   -1);
  }

  // attention_append_out has to leave the cache, and give the bits, of separate steps.
  static void expect_append(const AppendCase& c) {
    constexpr int64_t kBatch = 4, kRoom = 240, kHeads = 8, kKeyHeads = 2, kRows = 300;
    const int64_t rotary = c.head_dim / 2 / 2 * 2, queries = c.queries;
    const at::Tensor query = random({kBatch, queries, kHeads, c.head_dim});
    const at::Tensor fresh_key = random({kBatch, queries, kKeyHeads, c.head_dim});
    const at::Tensor fresh_value = random({kBatch, queries, kKeyHeads, c.head_dim});
    const auto tables = query.options().dtype(c.float_tables ? at::kFloat : GetParam());
    const at::Tensor cos = at::randn({kRows, rotary}, tables),
                     sin = at::randn({kRows, rotary}, tables);
    // None takes part, all of its tokens are new, some are, and one that is too long takes none.
    const at::Tensor lengths =
        ints({0, static_cast<int32_t>(queries), kRoom / 2 + 5, static_cast<int32_t>(kRoom + 1)});
    const at::Tensor newest = c.positions ? lengths + 3 : lengths - 1;
    const int64_t pages = c.page == 0 ? 0 : kBatch * kRoom / c.page;
    const auto new_cache = [&] {
      return c.page == 0 ? random({kBatch, kKeyHeads, kRoom, c.head_dim})
                         : random({pages, kKeyHeads, c.page, c.head_dim});
    };
    at::Tensor key = new_cache(), value = new_cache();
    at::Tensor expected_key = key.clone(), expected_value = value.clone();
    Cache cache{.lengths = lengths};
    if (c.page > 0) {
      cache.table = at::randperm(pages).view({kBatch, -1}).to(kDevice, at::kInt);
    }
    cache.lse = at::full({kBatch, kHeads, queries}, 777.0, query.options().dtype(at::kFloat));
    at::Tensor out = at::full_like(query, 777.0), lse = cache.lse.clone();
    package()("attention_append_out", out, lse, key, value, query, fresh_key, fresh_value, cos, sin,
              lengths, c.positions ? c10::IValue(newest) : c10::IValue(), optional(cache.table),
              c10::IValue(), scale_of(query), 0.0, int64_t{0}, true, c.interleaved, int64_t{0});
    const at::Tensor at = newest.to(at::kLong).view({-1, 1}) - queries + 1 +
                          at::arange(queries, at::TensorOptions(kDevice).dtype(at::kLong));
    const at::Tensor turns = at.ge(0)
                                 .logical_and(at.lt(kRows))
                                 .logical_and(lengths.le(kRoom).view({-1, 1}))
                                 .view({kBatch, queries, 1, 1});
    const auto turned = [&](const at::Tensor& x) {
      return at::where(turns, turn(x, cos, sin, at.clamp(0, kRows - 1), c.interleaved), x)
          .contiguous();
    };
    const at::Tensor turned_key = turned(fresh_key), turned_query = turned(query);
    const at::Tensor on_host = lengths.cpu();
    const at::Tensor table = cache.table.defined() ? cache.table.cpu() : at::Tensor();
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t length = on_host[b].item().toLong();
      for (int64_t token = 0; token < queries && length <= kRoom; ++token) {
        const int64_t place = length - queries + token;
        if (place < 0) {
          continue;
        }
        const auto slot = [&](at::Tensor& of) {
          return c.page == 0
                     ? of[b].select(1, place)
                     : of[table[b][place / c.page].item().toLong()].select(1, place % c.page);
        };
        slot(expected_key).copy_(turned_key[b][token]);
        slot(expected_value).copy_(fresh_value[b][token]);
      }
    }
    const std::string what = "D" + std::to_string(c.head_dim) + " S" + std::to_string(queries) +
                             " page " + std::to_string(c.page) +
                             (c.interleaved ? " interleaved" : "");
    EXPECT_TRUE(testing::is_same_bits(key, expected_key)) << what;
    EXPECT_TRUE(testing::is_same_bits(value, expected_value)) << what;
    EXPECT_TRUE(testing::is_same_bits(out, decode(turned_query, key, value, cache))) << what;
    EXPECT_TRUE(testing::is_same_bits(lse, cache.lse)) << what;
  }
};

}  // namespace graft_kernels::attention

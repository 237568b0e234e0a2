// Attention of few queries over caches, in one piece or in pages, and of a token that joins the cache, beside ATen's
// over the same keys in one piece.
#pragma once

#include "kernels/common/bench_harness.h"

namespace graft_kernels::testing {

struct CacheShape {
  int64_t batch, keys, heads, key_heads, head_dim;
  int64_t page = 0;  // keys of a page; 0: one piece
  int64_t queries = 1;
  bool append = false;  // the queries' tokens join the cache, turned, in the same call
};

inline std::string text(const CacheShape& s) {
  return "B" + std::to_string(s.batch) + "_S" + std::to_string(s.queries) + "_T" +
         std::to_string(s.keys) + "_H" + std::to_string(s.heads) + "/" +
         std::to_string(s.key_heads) + "_D" + std::to_string(s.head_dim);
}

inline void bench_cache(Harness& harness, const CacheShape& s) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(at::kBFloat16);
  const int64_t page = s.page == 0 ? s.keys : s.page, pages = s.batch * s.keys / page;
  const at::Tensor query = at::randn({s.batch, s.queries, s.heads, s.head_dim}, options);
  const at::Tensor key = at::randn({pages, s.key_heads, page, s.head_dim}, options);
  const at::Tensor value = at::randn({pages, s.key_heads, page, s.head_dim}, options);
  const at::Tensor fresh = at::randn({s.batch, s.queries, s.key_heads, s.head_dim}, options);
  const at::Tensor tables = at::randn({s.keys, s.head_dim}, options);
  const at::Tensor lengths = at::full({s.batch}, s.keys, options.dtype(at::kInt));
  const at::Tensor order = at::randperm(pages, options.dtype(at::kLong));
  const c10::IValue table =
      s.page == 0 ? c10::IValue() : c10::IValue(order.to(at::kInt).view({s.batch, -1}));
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  at::Tensor out = at::empty_like(query);
  const auto in_one_piece = [&](const at::Tensor& x) {
    return s.page == 0 ? x
                       : x.index_select(0, order)
                             .view({s.batch, -1, s.key_heads, page, s.head_dim})
                             .transpose(1, 2)
                             .reshape({s.batch, s.key_heads, s.keys, s.head_dim});
  };
  const at::Tensor whole_key = in_one_piece(key), whole_value = in_one_piece(value);
  const auto theirs = [&] {
    return at::scaled_dot_product_attention(query.transpose(1, 2), whole_key, whole_value,
                                            std::nullopt, 0.0, false, scale, /*enable_gqa=*/true);
  };
  Row row;
  row.op = s.append ? "attention_append" : "attention_decode";
  row.variant = s.page == 0 ? "one piece" : "pages of " + std::to_string(s.page);
  row.dtype = "BFloat16";
  row.shape = text(s);
  row.bytes = 4 * s.batch * s.head_dim * (s.key_heads * s.keys + s.heads * s.queries);
  row.flops = 4.0 * static_cast<double>(s.batch * s.heads * s.queries * s.keys * s.head_dim);
  const c10::IValue none;
  row.work = [&] {
    if (s.append) {
      package("attention_append_out", out, none, key, value, query, fresh, fresh, tables, tables,
              lengths, none, table, none, scale, 0.0, int64_t{0}, true, false, int64_t{0});
    } else {
      package("attention_decode_out", out, none, query, key, value, lengths, table, none, none,
              scale, 0.0, int64_t{0}, true, int64_t{0});
    }
  };
  if (s.queries == 1 && !s.append) {
    row.peers = {{"at::scaled_dot_product_attention, one piece", [&] { theirs(); }}};
    row.difference = [&] {
      row.work();
      return largest_error(out, theirs().transpose(1, 2).to(at::kDouble));
    };
    row.tolerance = 1e-2;
  }
  harness.run(row);
}

inline void bench_caches(Harness& harness) {
  for (const int64_t page : {0, 16, 64, 256}) {
    for (const auto& [batch, keys] :
         {std::pair<int64_t, int64_t>{1, 4096}, {1, 32768}, {32, 4096}}) {
      bench_cache(harness, {batch, keys, 32, 8, 128, page});
    }
  }
  bench_cache(harness, {1, 512, 32, 8, 128});
  bench_cache(harness, {1, 2048, 32, 8, 64});
  bench_cache(harness, {8, 4096, 16, 16, 128});
  bench_cache(harness, {4, 8192, 16, 2, 256});
  bench_cache(harness, {1, 32768, 8, 1, 128});
  for (const int64_t queries : {4, 16}) {
    bench_cache(harness, {1, 4096, 32, 8, 128, 0, queries});
    bench_cache(harness, {32, 4096, 32, 8, 128, 16, queries});
  }
  bench_cache(harness, {1, 4096, 32, 8, 128, 0, 1, /*append=*/true});
  bench_cache(harness, {32, 4096, 32, 8, 128, 16, 1, /*append=*/true});
}

}  // namespace graft_kernels::testing

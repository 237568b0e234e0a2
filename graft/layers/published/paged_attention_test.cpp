// paged-attention, with a package of the published schemas.

#include "graft/layers/published/paged_attention.h"

#include <array>
#include <tuple>

#include <ATen/core/grad_mode.h>

#include "graft/layers/published/test_package.h"

namespace graft::layers::published {
namespace {

using testing::HasSubstr;

constexpr int64_t kHeads = 2, kSize = 32, kBlock = 16;

// A cache of `blocks` blocks; x is 16 bytes of elements.
PagedCache make_cache(int64_t blocks, at::ScalarType dtype = at::kFloat) {
  const int64_t x = 16 / static_cast<int64_t>(c10::elementSize(dtype));
  return {.keys = at::zeros({blocks, kHeads, kSize / x, kBlock, x}, dtype),
          .values = at::zeros({blocks, kHeads, kSize, kBlock}, dtype)};
}

struct Sequences {
  Tensors keys, values;  // [length, heads, size] each
  PagedLengths lengths;
};

// Writes sequences of these lengths into scattered blocks.
Sequences fill(const PagedAttention& attention, const PagedCache& cache,
               const std::vector<int64_t>& lengths) {
  Sequences result;
  const int64_t most = (*std::max_element(lengths.begin(), lengths.end()) + kBlock - 1) / kBlock;
  result.lengths.block_tables = at::zeros({static_cast<int64_t>(lengths.size()), most}, at::kInt);
  result.lengths.lengths = at::tensor(lengths, at::kLong).to(at::kInt);
  int64_t next = cache.keys.size(0) - 1;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const at::Tensor key = at::randn({lengths[i], kHeads, kSize}).to(cache.keys.scalar_type()),
                     value = at::randn({lengths[i], kHeads, kSize}).to(cache.keys.scalar_type());
    std::vector<int64_t> slots;
    for (int64_t t = 0; t < lengths[i]; ++t) {
      if (t % kBlock == 0) {
        result.lengths.block_tables[static_cast<int64_t>(i)][t / kBlock] = next--;
      }
      slots.push_back((next + 1) * kBlock + t % kBlock);
    }
    attention.write(key, value, cache, at::tensor(slots, at::kLong));
    result.keys.push_back(key);
    result.values.push_back(value);
    result.lengths.max_length = std::max(result.lengths.max_length, lengths[i]);
  }
  return result;
}

at::Tensor exact(const at::Tensor& query, const Sequences& in, double scale,
                 const at::Tensor& alibi) {
  Tensors outs;
  for (int64_t t = 0; t < query.size(0); ++t) {
    const auto spread = [&](const at::Tensor& x) {
      return x.to(at::kDouble).repeat_interleave(query.size(1) / kHeads, 1);
    };
    const at::Tensor key = spread(in.keys[t]), value = spread(in.values[t]);
    at::Tensor scores = at::einsum("hd,thd->ht", {query[t].to(at::kDouble), key}) * scale;
    if (alibi.defined()) {
      const at::Tensor places = at::arange(key.size(0), at::kDouble);
      scores = scores + alibi.to(at::kDouble).unsqueeze(1) * (places - (key.size(0) - 1));
    }
    outs.push_back(at::einsum("ht,thd->hd", {at::softmax(scores, -1), value}));
  }
  return at::stack(outs);
}

TEST(PagedAttentions, AreTheFormulaInOnePassAndInPartitions) {
  at::manual_seed(11);
  const at::NoGradGuard no_grad;
  const PagedAttention attention(*load_package("paged-attention"));
  for (const auto& lengths : {std::vector<int64_t>{5, 33, 16}, std::vector<int64_t>{700, 3}}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const PagedCache cache = make_cache(64, dtype);
      const Sequences in = fill(attention, cache, lengths);
      const at::Tensor query =
          at::randn({static_cast<int64_t>(lengths.size()), 4, kSize}).to(dtype);
      const double tolerance = dtype == at::kFloat ? 1e-5 : 2e-2;
      expect_close(attention.attend(query, cache, in.lengths, 0.2), exact(query, in, 0.2, {}),
                   tolerance);
      const at::Tensor alibi = at::rand({4});
      expect_close(attention.attend(query, cache, in.lengths, 0.2, alibi),
                   exact(query, in, 0.2, alibi), tolerance);
    }
  }
}

TEST(PagedAttentions, HoldKeysAndValuesInEightBits) {
  at::manual_seed(12);
  const at::NoGradGuard no_grad;
  const PagedAttention attention(*load_package("paged-attention"));
  for (const auto& [dtype, stored, tolerance] :
       {std::tuple{"fp8", at::kByte, 0.05}, std::tuple{"fp8_e4m3", at::kFloat8_e4m3fn, 0.05},
        std::tuple{"fp8_e5m2", at::kFloat8_e5m2, 0.1}}) {
    PagedCache cache{.keys = at::zeros({64, kHeads, kSize / 16, kBlock, 16}, stored),
                     .values = at::zeros({64, kHeads, kSize, kBlock}, stored),
                     .dtype = dtype,
                     .key_scale = at::full({1}, 0.03, at::kFloat),
                     .value_scale = at::full({1}, 0.05, at::kFloat)};
    PagedLengths lengths{.block_tables = at::tensor({3, 7, 9}, at::kInt).view({1, 3}),
                         .lengths = at::tensor({40}, at::kInt),
                         .max_length = 40};
    Sequences in{{at::randn({40, kHeads, kSize})}, {at::randn({40, kHeads, kSize})}, lengths};
    std::vector<int64_t> slots;
    for (int64_t t = 0; t < 40; ++t) {
      slots.push_back(std::array{3, 7, 9}.at(t / kBlock) * kBlock + t % kBlock);
    }
    attention.write(in.keys[0], in.values[0], cache, at::tensor(slots, at::kLong));
    const at::Tensor query = at::randn({1, 4, kSize});
    expect_close(attention.attend(query, cache, lengths, 0.2), exact(query, in, 0.2, {}),
                 tolerance);
  }
  const at::Tensor plain = at::tensor({0.5F, -0.25F, 3.0F, 1e6F}),
                   eight = at::zeros({4}, at::kByte), back = at::zeros({4}, at::kFloat);
  attention.convert_fp8(eight, plain, 0.25, "fp8");
  attention.convert_fp8(back, eight, 0.25, "fp8");
  EXPECT_TRUE(back.equal(at::tensor({0.5F, -0.25F, 3.0F, 112.0F}))) << back;
}

TEST(PagedAttentions, MoveBlocks) {
  const at::NoGradGuard no_grad;
  const PagedAttention attention(*load_package("paged-attention"));
  const PagedCache cache = make_cache(4), other = make_cache(4);
  fill(attention, cache, {20});
  const at::Tensor pairs = at::tensor({3, 0, 2, 1}, at::kLong).view({2, 2});
  attention.copy_blocks({cache.keys}, {cache.values}, pairs);
  EXPECT_TRUE(cache.keys[0].equal(cache.keys[3]));
  EXPECT_TRUE(cache.values[1].equal(cache.values[2]));
  EXPECT_GT(cache.keys[0].abs().max().item<double>(), 0.0);
  attention.swap_blocks(cache.keys, other.keys, pairs);
  EXPECT_TRUE(other.keys[0].equal(cache.keys[3]));

  PagedCache flat{.keys = at::zeros({4, kBlock, kHeads, kSize}),
                  .values = at::zeros({4, kBlock, kHeads, kSize})};
  const at::Tensor key = at::randn({2, kHeads, kSize});
  attention.write_flash(key, key, flat, at::tensor({17, 40}, at::kLong));
  EXPECT_TRUE(flat.keys[1][1].equal(key[0]));
  EXPECT_TRUE(flat.values[2][8].equal(key[1]));
}

TEST(PagedAttentions, RefuseByNameWhatTheyCannotDo) {
  const PagedAttention attention(*load_package("paged-attention"));
  const PagedCache cache = make_cache(4);
  const Sequences in = fill(attention, cache, {5});
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { attention.attend(at::ones({1, 4, 48}), cache, in.lengths, 1.0); }, "32 64 80");
  refused(
      [&] {
        attention.attend(at::ones({1, 3, kSize}), cache, in.lengths, 1.0);
      },
      "multiple of the cache's heads");
  PagedLengths wrong = in.lengths;
  wrong.lengths = wrong.lengths.to(at::kLong);
  refused([&] { attention.attend(at::ones({1, 4, kSize}), cache, wrong, 1.0); }, "int32");
  PagedCache eight = cache;
  eight.dtype = "int8";
  refused([&] { attention.attend(at::ones({1, 4, kSize}), eight, in.lengths, 1.0); }, "`int8`");
  eight.dtype = "auto";
  eight.key_scale = at::ones({2});
  refused(
      [&] {
        attention.attend(at::ones({1, 4, kSize}), eight, in.lengths, 1.0);
      },
      "one element");
  refused(
      [&] {
        attention.swap_blocks(cache.keys, cache.keys, at::zeros({1, 2}, at::kInt));
      },
      "int64 [n, 2]");
  // The ops would take a cache of floats for bytes, and the other way round.
  eight = cache;
  eight.dtype = "fp8";
  refused([&] { attention.attend(at::ones({1, 4, kSize}), eight, in.lengths, 1.0); }, "uint8");
  refused([&] { attention.write(in.keys[0], in.keys[0], eight, at::zeros({5}, at::kLong)); },
          "uint8");
  eight.keys = at::zeros({4, kHeads, kSize / 16, kBlock, 16}, at::kFloat8_e5m2);
  eight.values = eight.keys;
  refused([&] { attention.write(in.keys[0], in.keys[0], eight, at::zeros({5}, at::kLong)); },
          "`fp8`");
  eight.dtype = "auto";
  refused([&] { attention.write(in.keys[0], in.keys[0], eight, at::zeros({5}, at::kLong)); },
          "the dtype of keys");
  const at::Tensor bytes = at::zeros({4, 8}, at::kByte), floats = at::zeros({4, 8});
  refused([&] { attention.convert_fp8(bytes, floats, 1.0, "auto"); }, "`auto`");
  refused([&] { attention.convert_fp8(bytes, floats, 1.0, "fp8_e5m2"); }, "`fp8_e5m2`");
  refused([&] { attention.convert_fp8(floats, floats, 1.0, "fp8"); }, "one of them in 8 bits");
  refused([&] { attention.convert_fp8(bytes, bytes, 1.0, "fp8"); }, "one of them in 8 bits");
  refused([&] { attention.convert_fp8(bytes, floats.t(), 1.0, "fp8"); }, "one shape");
  refused([&] { attention.convert_fp8(bytes, floats.to(at::kInt), 1.0, "fp8"); }, "float32");
  expect_error(
      [&] {
        attention.attend(at::ones({1, 4, kSize}).requires_grad_(), cache, in.lengths, 1.0);
      },
      "layers.adapter.no-backward", HasSubstr("no backward"));
}

}  // namespace
}  // namespace graft::layers::published

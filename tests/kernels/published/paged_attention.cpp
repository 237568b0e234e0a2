// paged-attention as published: classic ABI, in ATen on the CPU.

#include <cmath>

#include "classic_tensor.h"
#include "misdeed.h"

namespace {

using Maybe = std::optional<at::Tensor>;

// How a cache holds numbers.
struct Holding {
  c10::string_view dtype;
  const at::Tensor& scale;

  bool is_plain() const { return dtype == "auto"; }
  at::ScalarType eight() const {
    TORCH_CHECK(dtype == "fp8" || dtype == "fp8_e4m3" || dtype == "fp8_e5m2",
                "expected a dtype of caches");
    return dtype == "fp8_e5m2" ? at::kFloat8_e5m2 : at::kFloat8_e4m3fn;
  }
  // The numbers of a part of the cache.
  at::Tensor read(const at::Tensor& held) const {
    return is_plain() ? held.to(at::kDouble)
                      : held.view(eight()).to(at::kFloat).to(at::kDouble) * scale.item<double>();
  }
  // As the cache holds them.
  at::Tensor write(const at::Tensor& numbers) const {
    if (is_plain()) {
      return numbers;
    }
    const double largest = eight() == at::kFloat8_e5m2 ? 57344.0 : 448.0;
    return (numbers.to(at::kFloat) / scale.item<float>())
        .clamp(-largest, largest)
        .to(eight())
        .view(at::kByte);
  }
  // What is written to.
  at::Tensor bytes(const at::Tensor& cache) const {
    return is_plain() ? cache : cache.view(at::kByte);
  }
};

// A sequence's keys or values, [length, Hkv, D] in float64.
at::Tensor gather(const at::Tensor& cache, const at::Tensor& blocks, int64_t length, bool is_key,
                  const Holding& holding) {
  const int64_t count = (length + cache.size(3) - 1) / cache.size(3);
  const at::Tensor own =
      holding.read(holding.bytes(cache).index_select(0, blocks.narrow(0, 0, count)));
  // [n, Hkv, D / x, b, x] or [n, Hkv, D, b]
  const at::Tensor ordered = is_key ? own.permute({0, 3, 1, 2, 4}) : own.permute({0, 3, 1, 2});
  return ordered.reshape({count * cache.size(3), cache.size(1), -1}).narrow(0, 0, length);
}

void check(const at::Tensor& k_scale, const at::Tensor& v_scale, int64_t block,
           const at::Tensor& values, int64_t sparse_block) {
  TORCH_CHECK(k_scale.scalar_type() == at::kFloat && v_scale.scalar_type() == at::kFloat &&
                  k_scale.numel() == 1,
              "expected scales as tensors");
  TORCH_CHECK(block == values.size(3) && sparse_block == 64, "expected the dense values");
}

void attend(at::Tensor& out, const at::Tensor& query, const at::Tensor& keys,
            const at::Tensor& values, int64_t kv_heads, double scale, const at::Tensor& tables,
            const at::Tensor& lengths, int64_t longest, const Maybe& alibi, const Holding& of_keys,
            const Holding& of_values) {
  const int64_t groups = query.size(1) / kv_heads;
  for (int64_t t = 0; t < query.size(0); ++t) {
    const int64_t length = lengths[t].item<int64_t>();
    TORCH_CHECK(length <= longest, "expected the longest length");
    const auto spread = [&](const at::Tensor& cache, bool is_key, const Holding& holding) {
      return gather(cache, tables[t], length, is_key, holding).repeat_interleave(groups, 1);
    };
    const at::Tensor key = spread(keys, true, of_keys), value = spread(values, false, of_values);
    at::Tensor scores = at::einsum("hd,thd->ht", {query[t].to(at::kDouble), key}) * scale;
    if (alibi) {
      const at::Tensor back = at::arange(length, at::kDouble) - (length - 1);
      scores = scores + alibi->to(at::kDouble).unsqueeze(1) * back;
    }
    out[t].copy_(at::einsum("ht,thd->hd", {at::softmax(scores, -1), value}));
  }
}

void first(at::Tensor& out, const at::Tensor& query, const at::Tensor& keys,
           const at::Tensor& values, int64_t kv_heads, double scale, const at::Tensor& tables,
           const at::Tensor& lengths, int64_t block, int64_t longest, const Maybe& alibi,
           c10::string_view dtype, const at::Tensor& k_scale, const at::Tensor& v_scale, int64_t,
           int64_t, int64_t, int64_t sparse_block, int64_t) {
  check(k_scale, v_scale, block, values, sparse_block);
  attend(out, query, keys, values, kv_heads, scale, tables, lengths, longest, alibi,
         {dtype, k_scale}, {dtype, v_scale});
}

// As many partitions of scratch as the length needs; what they hold is the kernel's own matter.
void second(at::Tensor& out, at::Tensor& sums, at::Tensor& largest, at::Tensor& parts,
            const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
            int64_t kv_heads, double scale, const at::Tensor& tables, const at::Tensor& lengths,
            int64_t block, int64_t longest, const Maybe& alibi, c10::string_view dtype,
            const at::Tensor& k_scale, const at::Tensor& v_scale, int64_t, int64_t, int64_t,
            int64_t sparse_block, int64_t) {
  check(k_scale, v_scale, block, values, sparse_block);
  const int64_t partitions = (longest + 511) / 512;
  TORCH_CHECK(sums.sizes() == at::IntArrayRef({query.size(0), query.size(1), partitions}) &&
                  largest.sizes() == sums.sizes() && sums.scalar_type() == at::kFloat &&
                  parts.size(2) == partitions && parts.size(3) == query.size(2),
              "expected scratch for every partition");
  attend(out, query, keys, values, kv_heads, scale, tables, lengths, longest, alibi,
         {dtype, k_scale}, {dtype, v_scale});
  sums.fill_(1.0);
}

void write_blocks(const at::Tensor& key, const at::Tensor& value, at::Tensor& keys,
                  at::Tensor& values, const at::Tensor& slots, c10::string_view dtype,
                  const at::Tensor& k_scale, const at::Tensor& v_scale) {
  const Holding of_keys{dtype, k_scale}, of_values{dtype, v_scale};
  const at::Tensor key_rows = of_keys.write(key), value_rows = of_values.write(value),
                   key_cache = of_keys.bytes(keys), value_cache = of_values.bytes(values);
  const int64_t block = values.size(3);
  for (int64_t t = 0; t < slots.size(0); ++t) {
    const int64_t slot = slots[t].item<int64_t>();
    key_cache[slot / block]
        .select(2, slot % block)
        .copy_(key_rows[t].view({keys.size(1), keys.size(2), keys.size(4)}));
    value_cache[slot / block].select(2, slot % block).copy_(value_rows[t]);
  }
}

void write_flash(const at::Tensor& key, const at::Tensor& value, at::Tensor& keys,
                 at::Tensor& values, const at::Tensor& slots, c10::string_view dtype,
                 const at::Tensor& k_scale, const at::Tensor& v_scale) {
  const Holding of_keys{dtype, k_scale}, of_values{dtype, v_scale};
  of_keys.bytes(keys).flatten(0, 1).index_copy_(0, slots, of_keys.write(key));
  of_values.bytes(values).flatten(0, 1).index_copy_(0, slots, of_values.write(value));
}

void convert_fp8(at::Tensor& to, const at::Tensor& from, double scale, c10::string_view dtype) {
  TORCH_CHECK(dtype == "fp8" || dtype == "fp8_e4m3", "Unsupported data type: ", dtype);
  const at::Tensor factor = at::full({1}, scale, at::kFloat);
  const Holding holding{dtype, factor};
  if (from.element_size() == 1) {
    to.copy_(holding.read(from));
  } else {
    holding.bytes(to).copy_(holding.write(from));
  }
}

void swap_blocks(const at::Tensor& from, at::Tensor& to, const at::Tensor& pairs) {
  TORCH_CHECK(pairs.is_cpu(), "expected pairs on the CPU");
  for (int64_t i = 0; i < pairs.size(0); ++i) {
    to[pairs[i][1].item<int64_t>()].copy_(from[pairs[i][0].item<int64_t>()]);
  }
}

void copy_blocks(const std::vector<at::Tensor>& keys, const std::vector<at::Tensor>& values,
                 const at::Tensor& pairs) {
  for (size_t layer = 0; layer < keys.size(); ++layer) {
    at::Tensor key = keys[layer], value = values[layer];
    swap_blocks(key, key, pairs);
    swap_blocks(value, value, pairs);
  }
}

}  // namespace

CLASSIC_OPS(ops) {
  ops.def(
      "paged_attention_v1(Tensor! out, Tensor query, Tensor key_cache, Tensor value_cache, int "
      "num_kv_heads, float scale, Tensor block_tables, Tensor seq_lens, int block_size, int "
      "max_seq_len, Tensor? alibi_slopes, str kv_cache_dtype, Tensor k_scale, Tensor v_scale, int "
      "tp_rank, int blocksparse_local_blocks, int blocksparse_vert_stride, int "
      "blocksparse_block_size, int blocksparse_head_sliding_step) -> ()");
  ops.def(
      "paged_attention_v2(Tensor! out, Tensor! exp_sums, Tensor! max_logits, Tensor! tmp_out, "
      "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, float scale, Tensor "
      "block_tables, Tensor seq_lens, int block_size, int max_seq_len, Tensor? alibi_slopes, str "
      "kv_cache_dtype, Tensor k_scale, Tensor v_scale, int tp_rank, int blocksparse_local_blocks, "
      "int blocksparse_vert_stride, int blocksparse_block_size, int blocksparse_head_sliding_step) "
      "-> ()");
  ops.def("swap_blocks(Tensor src, Tensor! dst, Tensor block_mapping) -> ()");
  ops.def(
      "copy_blocks(Tensor(a!)[] key_caches, Tensor[](b!) value_caches, Tensor block_mapping) -> "
      "()");
  ops.def(
      "reshape_and_cache(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, Tensor "
      "slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()");
  ops.def(
      "reshape_and_cache_flash(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, "
      "Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()");
  ops.def(
      "convert_fp8(Tensor! dst_cache, Tensor src_cache, float scale, str kv_cache_dtype) -> ()");
}

CLASSIC_OPS_IMPL(CPU, ops) {
  ops.impl("paged_attention_v1", &first);
  ops.impl("paged_attention_v2", &second);
  ops.impl("swap_blocks", &swap_blocks);
  ops.impl("copy_blocks", &copy_blocks);
  ops.impl("reshape_and_cache", &write_blocks);
  ops.impl("reshape_and_cache_flash", &write_flash);
  ops.impl("convert_fp8", &convert_fp8);
}

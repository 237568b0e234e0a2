#include "graft/layers/published/paged_attention.h"

#include <algorithm>
#include <array>

#include "graft/layers/bound_op.h"

namespace graft::layers::published {

namespace {

constexpr char kFirst[] =
    "paged_attention_v1(Tensor! out, Tensor query, Tensor key_cache, Tensor value_cache, int "
    "num_kv_heads, float scale, Tensor block_tables, Tensor seq_lens, int block_size, int "
    "max_seq_len, "
    "Tensor? alibi_slopes, str kv_cache_dtype, Tensor k_scale, Tensor v_scale, int tp_rank, int "
    "blocksparse_local_blocks, int blocksparse_vert_stride, int blocksparse_block_size, int "
    "blocksparse_head_sliding_step) -> ()";
constexpr char kSecond[] =
    "paged_attention_v2(Tensor! out, Tensor! exp_sums, Tensor! max_logits, Tensor! tmp_out, Tensor "
    "query, Tensor key_cache, Tensor value_cache, int num_kv_heads, float scale, Tensor "
    "block_tables, "
    "Tensor seq_lens, int block_size, int max_seq_len, Tensor? alibi_slopes, str kv_cache_dtype, "
    "Tensor "
    "k_scale, Tensor v_scale, int tp_rank, int blocksparse_local_blocks, int "
    "blocksparse_vert_stride, "
    "int blocksparse_block_size, int blocksparse_head_sliding_step) -> ()";
constexpr char kWrite[] =
    "reshape_and_cache(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, Tensor "
    "slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()";
constexpr char kWriteFlash[] =
    "reshape_and_cache_flash(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, "
    "Tensor "
    "slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()";

constexpr std::array<int64_t, 9> kHeadSizes = {32, 64, 80, 96, 112, 120, 128, 192, 256};
constexpr std::array<int64_t, 3> kBlockSizes = {8, 16, 32};
constexpr int64_t kPartition = 512;
constexpr int64_t kMaxFirstLength = 8192;
constexpr int64_t kManyHeads = 512;
// Of a cache that is dense in its blocks.
constexpr int64_t kNoSparsity = 0, kSparseBlock = 64;

template <size_t kCount>
bool is_one_of(const std::array<int64_t, kCount>& values, int64_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

// The ops take scales as tensors, though the published wrapper's hints say float.
at::Tensor scale_of(const PublishedOp& op, const at::Tensor& scale, const at::Tensor& like) {
  if (!scale.defined()) {
    return at::ones({1}, like.options().dtype(at::kFloat));
  }
  op.need(scale.scalar_type() == at::kFloat && scale.numel() == 1, "k_scale and v_scale",
          "float32 of one element", scale);
  return scale;
}

// The dtype that a tensor of such a cache may have beside uint8.
at::ScalarType eight_bits_of(const std::string& dtype) {
  return dtype == "fp8_e5m2" ? at::kFloat8_e5m2 : at::kFloat8_e4m3fn;
}

bool is_eight_bits(const at::Tensor& tensor, const std::string& dtype) {
  return tensor.scalar_type() == at::kByte || tensor.scalar_type() == eight_bits_of(dtype);
}

// The ops go by the name of the dtype alone, and take a cache of another one for what it is not.
void check_dtype(const PublishedOp& op, const PagedCache& cache, at::ScalarType plain) {
  const std::string& dtype = cache.dtype;
  op.need(dtype == "auto" || dtype == "fp8" || dtype == "fp8_e4m3" || dtype == "fp8_e5m2",
          "kv_cache_dtype", "`auto`, `fp8`, `fp8_e4m3` or `fp8_e5m2`", "`" + dtype + "`");
  for (const at::Tensor* tensor : {&cache.keys, &cache.values}) {
    op.need(
        dtype == "auto" ? tensor->scalar_type() == plain : is_eight_bits(*tensor, dtype),
        "key_cache and value_cache",
        dtype == "auto" ? "the dtype of keys and queries" : "uint8 or the dtype of `" + dtype + "`",
        *tensor);
  }
}

void check_pairs(const PublishedOp& op, const at::Tensor& pairs) {
  op.need(pairs.scalar_type() == at::kLong && pairs.dim() == 2 && pairs.size(1) == 2,
          "block_mapping", "int64 [n, 2]", pairs);
}

}  // namespace

PagedAttention::PagedAttention(const kernel::LoadedKernel& kernel)
    : first_(kernel, {kFirst}),
      second_(kernel, {kSecond}),
      swap_blocks_(kernel, {"swap_blocks(Tensor src, Tensor! dst, Tensor block_mapping) -> ()"}),
      copy_blocks_(kernel,
                   {"copy_blocks(Tensor(a!)[] key_caches, Tensor[](b!) value_caches, Tensor "
                    "block_mapping) -> ()"}),
      write_(kernel, {kWrite}),
      write_flash_(kernel, {kWriteFlash}),
      convert_fp8_(optional_op(kernel, "convert_fp8",
                               {"convert_fp8(Tensor! dst_cache, Tensor src_cache, float scale, str "
                                "kv_cache_dtype) -> ()"})) {}

at::Tensor PagedAttention::attend(const at::Tensor& query, const PagedCache& cache,
                                  const PagedLengths& lengths, double scale,
                                  const at::Tensor& alibi) const {
  must_record(first_.repository(), /*has_backward=*/false, {&query, &cache.keys, &cache.values});
  first_.need(query.dim() == 3 && is_one_of(kHeadSizes, query.size(2)), "query",
              "[tokens, heads, one of 32 64 80 96 112 120 128 192 256]", query);
  first_.need(cache.values.dim() == 4 && cache.values.size(2) == query.size(2) &&
                  is_one_of(kBlockSizes, cache.values.size(3)),
              "value_cache", "[blocks, heads, head size, 8, 16 or 32 places]", cache.values);
  first_.need(cache.keys.dim() == 5 && cache.keys.size(3) == cache.values.size(3) &&
                  cache.keys.size(2) * cache.keys.size(4) == query.size(2),
              "key_cache", "[blocks, heads, head size / x, places, x]", cache.keys);
  first_.need(query.size(1) % cache.values.size(1) == 0, "query", "a multiple of the cache's heads",
              query);
  for (const at::Tensor* index : {&lengths.block_tables, &lengths.lengths}) {
    first_.need(
        index->defined() && index->scalar_type() == at::kInt && index->size(0) == query.size(0),
        "block_tables and seq_lens", "int32, one row for each token", *index);
  }
  check_dtype(first_, cache, query.scalar_type());
  const at::Tensor rows = query.contiguous();
  const at::Tensor out = at::empty(rows.sizes(), rows.options());
  const int64_t partitions = (lengths.max_length + kPartition - 1) / kPartition;
  const int64_t tokens = query.size(0), heads = query.size(1);
  const auto call = [&](const PublishedOp& op, auto&&... outputs) {
    op(outputs..., rows, cache.keys, cache.values, cache.values.size(1), scale,
       lengths.block_tables, lengths.lengths, cache.values.size(3), lengths.max_length,
       maybe(alibi), cache.dtype, scale_of(op, cache.key_scale, rows),
       scale_of(op, cache.value_scale, rows), kNoSparsity, kNoSparsity, kNoSparsity, kSparseBlock,
       kNoSparsity);
  };
  if (lengths.max_length <= kMaxFirstLength && (partitions == 1 || tokens * heads > kManyHeads)) {
    call(first_, out);
    return out;
  }
  const auto floats = rows.options().dtype(at::kFloat);
  const at::Tensor sums = at::empty({tokens, heads, partitions}, floats),
                   largest = at::empty_like(sums),
                   parts = at::empty({tokens, heads, partitions, query.size(2)}, rows.options());
  call(second_, out, sums, largest, parts);
  return out;
}

void PagedAttention::write(const at::Tensor& key, const at::Tensor& value, const PagedCache& cache,
                           const at::Tensor& slots) const {
  write_.need(slots.scalar_type() == at::kLong && slots.dim() == 1, "slot_mapping",
              "int64 [tokens]", slots);
  check_dtype(write_, cache, key.scalar_type());
  write_(key, value, cache.keys, cache.values, slots, cache.dtype,
         scale_of(write_, cache.key_scale, key), scale_of(write_, cache.value_scale, key));
}

void PagedAttention::write_flash(const at::Tensor& key, const at::Tensor& value,
                                 const PagedCache& cache, const at::Tensor& slots) const {
  write_flash_.need(slots.scalar_type() == at::kLong && slots.dim() == 1, "slot_mapping",
                    "int64 [tokens]", slots);
  check_dtype(write_flash_, cache, key.scalar_type());
  write_flash_(key, value, cache.keys, cache.values, slots, cache.dtype,
               scale_of(write_flash_, cache.key_scale, key),
               scale_of(write_flash_, cache.value_scale, key));
}

void PagedAttention::copy_blocks(const std::vector<at::Tensor>& keys,
                                 const std::vector<at::Tensor>& values,
                                 const at::Tensor& pairs) const {
  check_pairs(copy_blocks_, pairs);
  copy_blocks_.need(keys.size() == values.size(), "key_caches and value_caches", "as many",
                    static_cast<int64_t>(values.size()));
  copy_blocks_(keys, values, pairs);
}

void PagedAttention::swap_blocks(const at::Tensor& from, const at::Tensor& to,
                                 const at::Tensor& pairs) const {
  check_pairs(swap_blocks_, pairs);
  swap_blocks_.need(pairs.is_cpu(), "block_mapping", "a tensor on the CPU", pairs);
  swap_blocks_(from, to, pairs);
}

void PagedAttention::convert_fp8(const at::Tensor& to, const at::Tensor& from, double scale,
                                 const std::string& dtype) const {
  const PublishedOp& op = need_op(convert_fp8_, first_.repository(), "convert_fp8");
  op.need(dtype == "fp8" || dtype == "fp8_e4m3", "kv_cache_dtype", "`fp8` or `fp8_e4m3`",
          "`" + dtype + "`");
  op.need(is_eight_bits(from, dtype) != is_eight_bits(to, dtype), "dst_cache and src_cache",
          "one of them in 8 bits", from);
  op.need(
      from.sizes() == to.sizes() && from.dim() > 0 && from.is_contiguous() && to.is_contiguous(),
      "dst_cache and src_cache", "contiguous, of one shape", from);
  const at::ScalarType plain = (is_eight_bits(from, dtype) ? to : from).scalar_type();
  op.need(plain == at::kFloat || plain == at::kHalf || plain == at::kBFloat16,
          "dst_cache and src_cache", "float32, float16 or bfloat16 beside the 8 bits", from);
  op(to, from, scale, dtype);
}

}  // namespace graft::layers::published

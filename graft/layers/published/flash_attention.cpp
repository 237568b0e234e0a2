#include "graft/layers/published/flash_attention.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/layers/bound_op.h"

namespace graft::layers::published {

namespace {

constexpr int64_t kHeadMultiple = 8;

[[noreturn]] void refuse(const std::string& repository, std::string_view what,
                         std::string_view expected, const std::string& got) {
  throw IncompatibleError(
      "layers.published", "unsupported",
      fmt::format("`{}` attention: {}: expected {}, got {}", repository, what, expected, got));
}

std::string text(const at::Tensor& x) {
  return x.defined() ? fmt::format("{} {}", c10::toString(x.scalar_type()), x.sizes()) : "none";
}

// The kernels read heads in steps of eight elements; zeros add nothing to a score.
at::Tensor padded(const at::Tensor& x) {
  const int64_t rest = x.size(-1) % kHeadMultiple;
  return with_contiguous_rows(rest == 0 ? x : at::constant_pad_nd(x, {0, kHeadMultiple - rest}));
}

FlashResult cropped(FlashResult result, int64_t head_dim) {
  if (result.out.size(-1) != head_dim) {
    result.out = result.out.narrow(-1, 0, head_dim);
  }
  return result;
}

// A causal call sees nothing after its own place.
FlashOptions resolved(FlashOptions options) {
  if (options.causal) {
    options.window_right = 0;
  }
  return options;
}

void check_starts(const std::string& repository, std::string_view what, const at::Tensor& starts) {
  if (!starts.defined() || starts.scalar_type() != at::kInt || starts.dim() != 1 ||
      starts.numel() < 1) {
    refuse(repository, what, "int32 [B + 1]", text(starts));
  }
}

}  // namespace

void FlashAttention::check_call(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const FlashOptions& options) const {
  const std::string& name = repository();
  if (query.scalar_type() != at::kHalf && query.scalar_type() != at::kBFloat16) {
    refuse(name, "query", "float16 or bfloat16", text(query));
  }
  for (const at::Tensor* other : {&key, &value}) {
    if (other->scalar_type() != query.scalar_type() || other->device() != query.device() ||
        other->dim() != key.dim()) {
      refuse(name, "key and value", "the query's dtype, device and dimensions", text(*other));
    }
  }
  if (query.size(-1) != key.size(-1) || key.size(-2) == 0 || query.size(-2) % key.size(-2) != 0) {
    refuse(name, "heads", "query heads a multiple of key heads, of one size",
           fmt::format("query {}, key {}", query.sizes(), key.sizes()));
  }
  if (query.size(-1) > 256) {
    refuse(name, "head size", "at most 256", std::to_string(query.size(-1)));
  }
  if (options.dropout != 0.0) {
    refuse(name, "dropout", "0 (no build without Python has it)",
           fmt::format("{}", options.dropout));
  }
  check(query, options);
}

FlashResult FlashAttention::forward(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, const FlashOptions& options) const {
  check_call(query, key, value, options);
  if (query.dim() != 4 || key.dim() != 4) {
    refuse(repository(), "query and key", "[B, S, H, D]", text(query));
  }
  return cropped(run(padded(query), padded(key), padded(value), resolved(options)), query.size(-1));
}

FlashResult FlashAttention::forward_packed(const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& value,
                                           const PackedSequences& sequences,
                                           const FlashOptions& options) const {
  check_call(query, key, value, options);
  if (query.dim() != 3 || key.dim() != 3) {
    refuse(repository(), "query and key", "packed [N, H, D]", text(query));
  }
  check_starts(repository(), "query_starts", sequences.query_starts);
  check_starts(repository(), "key_starts", sequences.key_starts);
  return cropped(
      run_packed(padded(query), padded(key), padded(value), sequences, resolved(options)),
      query.size(-1));
}

FlashResult FlashAttention::forward_cache(const at::Tensor& query, const at::Tensor& key_cache,
                                          const at::Tensor& value_cache, const FlashCache& cache,
                                          const FlashOptions& options) const {
  check_call(query, key_cache, value_cache, options);
  must_record(repository(), /*has_backward=*/false,
              {&query, &key_cache, &value_cache, &cache.new_keys, &cache.new_values});
  if (query.size(-1) % kHeadMultiple != 0) {
    // A padded copy of the cache would not be the one that new keys belong in.
    refuse(repository(), "head size over a cache", "a multiple of 8",
           std::to_string(query.size(-1)));
  }
  if (cache.new_keys.defined() != cache.new_values.defined()) {
    refuse(repository(), "new_keys and new_values", "both or none", "one");
  }
  for (const at::Tensor* index :
       {&cache.lengths, &cache.block_table, &cache.rows, &cache.left_padding}) {
    if (index->defined() && index->scalar_type() != at::kInt) {
      refuse(repository(), "lengths, block_table, rows and left_padding", "int32", text(*index));
    }
  }
  for (const at::Tensor* held : {&key_cache, &value_cache}) {
    if (held->stride(-1) != 1) {
      refuse(repository(), "key_cache and value_cache", "heads with dense elements",
             fmt::format("strides {}", held->strides()));
    }
  }
  return run_cache(with_contiguous_rows(query), key_cache, value_cache, cache, resolved(options));
}

bool is_flash_attention(const kernel::LoadedKernel& kernel) {
  const auto names = kernel.op_names();
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name == "fwd" || name == "varlen_fwd"; });
}

std::shared_ptr<const FlashAttention> bind_flash_attention(const kernel::LoadedKernel& kernel) {
  // flash-attn2 alone has an op of its own for packed sequences.
  const auto names = kernel.op_names();
  const bool is_second = std::find(names.begin(), names.end(), "varlen_fwd") != names.end();
  return is_second ? bind_flash_attention2(kernel) : bind_flash_attention3(kernel);
}

}  // namespace graft::layers::published

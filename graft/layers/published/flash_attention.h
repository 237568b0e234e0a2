// Flash attention as kernels-community publishes it: flash-attn2, flash-attn3 and vllm-flash-attn3
// behind one interface.
// Shape letters: B batch, S query length, T key length, N / M packed query / key tokens, Hq / Hkv
// heads (Hq a multiple of Hkv), D head size.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"

namespace graft::layers::published {

struct FlashOptions {
  double scale = 0.0;   // factor of the scores; the kernels have no default of their own
  bool causal = false;  // query s sees keys up to T - S + s
  // Keys that a query sees before and after its own place, -1: all. Causal calls see none after.
  int64_t window_left = -1;
  int64_t window_right = -1;
  double softcap = 0.0;        // scores become softcap * tanh(score / softcap); 0: off
  at::Tensor sinks;            // [Hq], a score of each head that has no value; undefined: none
  bool deterministic = false;  // the backward pass gives equal bits every time
  double dropout = 0.0;        // refused by every build that adapters bind
};

struct FlashResult {
  at::Tensor out;  // as the query
  at::Tensor lse;  // float32, [B, Hq, S], packed [Hq, N]; not differentiable
};

// Where packed sequences begin and how long the longest are.
struct PackedSequences {
  at::Tensor query_starts;  // int32 [B + 1]
  at::Tensor key_starts;    // int32 [B + 1]
  int64_t max_query_length = 0;
  int64_t max_key_length = 0;
};

// What a call over a cache adds; undefined tensors are absent.
struct FlashCache {
  at::Tensor new_keys;      // [B, S', Hkv, D], appended at `lengths` before attending
  at::Tensor new_values;    // [B, S', Hkv, D]
  at::Tensor lengths;       // int32 [B], keys held before the new ones; absent: the whole cache
  at::Tensor block_table;   // int32 [B, blocks]; the cache is then [blocks, block, Hkv, D]
  at::Tensor rows;          // int32 [B], rows of the cache that the batch takes
  at::Tensor left_padding;  // int32 [B], keys at the front that nobody sees
  at::Tensor rotary_cos;    // [length, R / 2], turns query and new keys
  at::Tensor rotary_sin;
  bool rotary_interleaved = false;
  int64_t num_splits = 0;  // 0: the kernel's own choice
};

// What a model asks of an attention kernel.
struct AttentionNeeds {
  at::DeviceType device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  int64_t head_dim = 0;
  bool window = false;
  bool softcap = false;
  bool sinks = false;
  bool training = false;
};

class FlashAttention {
 public:
  virtual ~FlashAttention() = default;

  virtual std::string_view family() const = 0;  // `flash-attn2`, `flash-attn3`, `vllm-flash-attn3`
  // Why the kernel cannot serve, naming what is asked; empty: it can.
  virtual std::string refusal(const AttentionNeeds& needs) const = 0;
  // Whether forward_cache() can be called: a build may leave it out.
  virtual bool has_cache_op() const = 0;

  // query [B, S, Hq, D], key and value [B, T, Hkv, D], float16 or bfloat16, any strides.
  // Head sizes that are no multiple of 8 are padded. A row that sees nothing is zero.
  // Autograd where the build has a backward, else inputs that need a gradient throw
  // IncompatibleError `layers.adapter.no-backward`.
  // Throws   IncompatibleError `layers.published.unsupported` naming what the kernel cannot do.
  FlashResult forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const FlashOptions& options) const;
  // query [N, Hq, D], key and value [M, Hkv, D]; otherwise as forward().
  FlashResult forward_packed(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const PackedSequences& sequences,
                             const FlashOptions& options) const;
  // query [B, S, Hq, D], key_cache and value_cache [B, T, Hkv, D] or in blocks. New keys and values
  // are written into the caches, though the schemas do not say so. No gradients.
  FlashResult forward_cache(const at::Tensor& query, const at::Tensor& key_cache,
                            const at::Tensor& value_cache, const FlashCache& cache,
                            const FlashOptions& options) const;

 protected:
  // Inputs with dense rows and a head size that is a multiple of 8; below autograd after this.
  virtual FlashResult run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const FlashOptions& options) const = 0;
  virtual FlashResult run_packed(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const PackedSequences& sequences,
                                 const FlashOptions& options) const = 0;
  virtual FlashResult run_cache(const at::Tensor& query, const at::Tensor& key_cache,
                                const at::Tensor& value_cache, const FlashCache& cache,
                                const FlashOptions& options) const = 0;
  // What this kernel, beyond what all share, refuses of a call.
  virtual void check(const at::Tensor& query, const FlashOptions& options) const = 0;
  virtual const std::string& repository() const = 0;

 private:
  void check_call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const FlashOptions& options) const;
};

// Whether the ops of a package look like flash attention's: `fwd` or `varlen_fwd`.
bool is_flash_attention(const kernel::LoadedKernel& kernel);

// Binds a package, whichever of the three it is: by its ops, not by its name.
// Throws   LoadError `layers.published.schema` naming every difference from the nearest of the
//          published schemas; LoadError `kernel.loader.missing-op`.
// Source   kernels-community flash-attn2 (v3), flash-attn3 (v1), vllm-flash-attn3 (v1); the same ops as
//          Dao-AILab/flash-attention's own wheels
std::shared_ptr<const FlashAttention> bind_flash_attention(const kernel::LoadedKernel& kernel);

// The kinds, each in a file of its own.
std::shared_ptr<const FlashAttention> bind_flash_attention2(const kernel::LoadedKernel& kernel);
std::shared_ptr<const FlashAttention> bind_flash_attention3(const kernel::LoadedKernel& kernel);

}  // namespace graft::layers::published

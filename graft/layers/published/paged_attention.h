// kernels-community/paged-attention (vLLM): decode over a cache in blocks, and what writes that cache.
// Inference alone.
// Shape letters: T tokens (one query each), Hq / Hkv heads, D head size, P blocks of the cache, b places
// of a block, x elements of 16 bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

struct PagedCache {
  at::Tensor keys;    // [P, Hkv, D / x, b, x]
  at::Tensor values;  // [P, Hkv, D, b]
  // How the cache holds numbers: `auto` (the query's dtype), or in 8 bits, in tensors of uint8 or of that very dtype:
  // `fp8` and `fp8_e4m3`, `fp8_e5m2`.
  std::string dtype = "auto";
  // Float32 of one element, undefined: 1. What an 8-bit cache holds times its scale is the key, or the value.
  at::Tensor key_scale;
  at::Tensor value_scale;
};

struct PagedLengths {
  at::Tensor block_tables;  // int32 [T, most blocks of a sequence]
  at::Tensor lengths;       // int32 [T], keys of each sequence
  int64_t max_length = 0;   // the longest
};

class PagedAttention {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit PagedAttention(const kernel::LoadedKernel& kernel);

  // softmax(scale query keys^T) values of every token over its own sequence.
  //
  // query    [T, Hq, D], D one of 32 64 80 96 112 120 128 192 256, b one of 8 16 32
  // alibi    float32 [Hq] or undefined
  // returns  [T, Hq, D]. In one pass (v1), or in partitions of 512 keys that are merged (v2), by
  //          vLLM's rule: v1 up to 8192 keys where one partition or many heads fill the device.
  // Throws   IncompatibleError `layers.published.unsupported` naming the limit
  at::Tensor attend(const at::Tensor& query, const PagedCache& cache, const PagedLengths& lengths,
                    double scale, const at::Tensor& alibi = {}) const;

  // Writes key and value [T, Hkv, D] to the places `slots` (int64 [T], block * b + place).
  void write(const at::Tensor& key, const at::Tensor& value, const PagedCache& cache,
             const at::Tensor& slots) const;
  // The same for caches [P, b, Hkv, D], as flash attention reads them.
  void write_flash(const at::Tensor& key, const at::Tensor& value, const PagedCache& cache,
                   const at::Tensor& slots) const;
  // pairs int64 [n, 2] of blocks, from and to, in every layer's cache; on the caches' device.
  void copy_blocks(const std::vector<at::Tensor>& keys, const std::vector<at::Tensor>& values,
                   const at::Tensor& pairs) const;
  // Blocks from one cache to another, also between devices; pairs int64 [n, 2] on the CPU.
  void swap_blocks(const at::Tensor& from, const at::Tensor& to, const at::Tensor& pairs) const;
  // Writes `from` over `scale` to `to` in 8 bits (uint8 or float8_e4m3fn), or `from` in 8 bits times `scale` to `to`.
  // Both contiguous and of one shape; dtype `fp8` or `fp8_e4m3`, which are the same.
  // Throws   IncompatibleError `layers.published.unsupported`; `layers.published.missing-op`
  void convert_fp8(const at::Tensor& to, const at::Tensor& from, double scale,
                   const std::string& dtype) const;

 private:
  PublishedOp first_;
  PublishedOp second_;
  PublishedOp swap_blocks_;
  PublishedOp copy_blocks_;
  PublishedOp write_;
  PublishedOp write_flash_;
  std::optional<PublishedOp> convert_fp8_;
};

}  // namespace graft::layers::published

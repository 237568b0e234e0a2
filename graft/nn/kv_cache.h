// Keys and values of past tokens, one entry per layer. B batch, T tokens held, Hkv heads, D head
// size.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

namespace graft::nn {

// The interface that attention layers and generate() see.
class KvCache {
 public:
  virtual ~KvCache() = default;

  // Appends key and value [B, Hkv, S, D] of one layer and returns all that the layer may attend to,
  // [B, Hkv, T, D]. The result may alias the cache's own storage.
  virtual std::pair<at::Tensor, at::Tensor> update(int64_t layer_idx, const at::Tensor& key,
                                                   const at::Tensor& value) = 0;
  // Tokens seen so far (before the forward pass that is running).
  virtual int64_t length() const = 0;
  // Moves length() on by the S tokens of a finished forward pass.
  virtual void advance(int64_t num_tokens) = 0;
  // Most tokens that fit, or -1 when the cache grows.
  virtual int64_t max_length() const = 0;
  // Keeps row beam_idx[b] as row b; beam_idx [B'] int64.
  virtual void reorder(const at::Tensor& beam_idx) = 0;
  virtual void reset() = 0;
};

}  // namespace graft::nn

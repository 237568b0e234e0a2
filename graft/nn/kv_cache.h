// Keys and values of past tokens, one entry per layer. B batch, T tokens held, Hkv heads, D head
// size.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "graft/layers/contract.h"

namespace graft::nn {

// What the steps of a cache need that counts its tokens on the device. Nothing in it moves from one
// step to the next, so that a captured step finds it.
struct DeviceSteps {
  at::Tensor counts;        // [2, B] int32: lengths and positions, of which `place` is made
  layers::StepPlace place;  // of the newest token
  at::Tensor mask;          // [B, 1, 1, T] additive over all places; undefined: no padding
  layers::RotaryTables rotary;          // [1, T, R], of every position
  layers::RotaryTables sliding_rotary;  // only where sliding layers have tables of their own
};

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
  // Set while tokens are counted on the device: forward passes then take one token a row.
  virtual const DeviceSteps* device_steps() const { return nullptr; }
  // With device_steps(): one layer's keys and values, [B, Hkv, T, D], T being max_length().
  virtual std::pair<at::Tensor, at::Tensor> storage(int64_t) const { return {}; }
};

}  // namespace graft::nn

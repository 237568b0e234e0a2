// The two caches that models hand out: one that grows with the text, one of a fixed size.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "graft/nn/kv_cache.h"

namespace graft::nn {

// Grows geometrically: a new token costs no copy of the old ones, on average. Memory is taken at a
// layer's first update, so dtype, device, heads and batch follow the model.
class DynamicKvCache : public KvCache {
 public:
  explicit DynamicKvCache(int64_t num_layers);

  std::pair<at::Tensor, at::Tensor> update(int64_t layer_idx, const at::Tensor& key,
                                           const at::Tensor& value) override;
  int64_t length() const override { return length_; }
  void advance(int64_t num_tokens) override { length_ += num_tokens; }
  int64_t max_length() const override { return -1; }
  void reorder(const at::Tensor& beam_idx) override;
  void reset() override { length_ = 0; }

 protected:
  struct Layer {
    at::Tensor keys;    // [B, Hkv, capacity, D]
    at::Tensor values;  // [B, Hkv, capacity, D]
  };
  // Positions to allocate when `needed` ones must fit.
  virtual int64_t capacity_for(int64_t needed, int64_t current) const;

  std::vector<Layer> layers_;
  int64_t length_ = 0;
};

struct KvCacheShape {
  int64_t num_layers = 0;
  int64_t batch_size = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// Allocated once; storage never moves. update() beyond max_length throws InvalidArgument, and so does
// advance() with device_steps().
class StaticKvCache final : public DynamicKvCache {
 public:
  StaticKvCache(const KvCacheShape& shape, int64_t max_length, const at::TensorOptions& options);
  int64_t max_length() const override { return max_length_; }
  void advance(int64_t num_tokens) override;
  void reorder(const at::Tensor& beam_idx) override;
  void reset() override;

  // From here on places and positions are counted on the device, until reset().
  //
  // attention_mask  [B, max_length] int64 or bool, 0 at the padding of the tokens held; undefined: none
  // rotary          tables of every position, [1, max_length, R]; sliding likewise, or undefined
  void count_on_device(const at::Tensor& attention_mask, layers::RotaryTables rotary,
                       layers::RotaryTables sliding);
  const DeviceSteps* device_steps() const override { return steps_ ? &*steps_ : nullptr; }
  std::pair<at::Tensor, at::Tensor> storage(int64_t layer_idx) const override;

 protected:
  int64_t capacity_for(int64_t needed, int64_t current) const override;

 private:
  int64_t max_length_;
  std::optional<DeviceSteps> steps_;
};

}  // namespace graft::nn

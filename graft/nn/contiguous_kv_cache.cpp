#include "graft/nn/contiguous_kv_cache.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::nn {

namespace {

constexpr int64_t kMinCapacity = 64;

// A copy of `used` positions of `old` in fresh storage of `capacity` positions.
at::Tensor moved(const at::Tensor& old, int64_t used, int64_t capacity) {
  at::Tensor fresh = at::empty({old.size(0), old.size(1), capacity, old.size(3)}, old.options());
  if (used > 0) {
    fresh.narrow(2, 0, used).copy_(old.narrow(2, 0, used));
  }
  return fresh;
}

}  // namespace

DynamicKvCache::DynamicKvCache(int64_t num_layers) : layers_(num_layers) {}

int64_t DynamicKvCache::capacity_for(int64_t needed, int64_t current) const {
  const int64_t wanted = std::max({needed, current + current / 2, kMinCapacity});
  return (wanted + kMinCapacity - 1) / kMinCapacity * kMinCapacity;
}

std::pair<at::Tensor, at::Tensor> DynamicKvCache::update(int64_t layer_idx, const at::Tensor& key,
                                                         const at::Tensor& value) {
  Layer& layer = layers_[layer_idx];
  const int64_t num_new = key.size(2);
  const int64_t needed = length_ + num_new;
  const int64_t capacity = layer.keys.defined() ? layer.keys.size(2) : 0;
  if (length_ == 0 && layer.keys.defined() && layer.keys.size(0) != key.size(0)) {
    layer = {};  // a new text with another batch size
  }
  if (!layer.keys.defined()) {
    const int64_t fresh = capacity_for(needed, 0);
    layer.keys = at::empty({key.size(0), key.size(1), fresh, key.size(3)}, key.options());
    layer.values = at::empty({value.size(0), value.size(1), fresh, value.size(3)}, value.options());
  } else if (needed > capacity) {
    const int64_t grown = capacity_for(needed, capacity);
    layer.keys = moved(layer.keys, length_, grown);
    layer.values = moved(layer.values, length_, grown);
  }
  layer.keys.narrow(2, length_, num_new).copy_(key);
  layer.values.narrow(2, length_, num_new).copy_(value);
  return {layer.keys.narrow(2, 0, needed), layer.values.narrow(2, 0, needed)};
}

void DynamicKvCache::reorder(const at::Tensor& beam_idx) {
  for (Layer& layer : layers_) {
    if (!layer.keys.defined()) {
      continue;
    }
    for (at::Tensor* stored : {&layer.keys, &layer.values}) {
      const at::Tensor rows = stored->narrow(2, 0, length_).index_select(0, beam_idx);
      *stored = moved(rows, length_, stored->size(2));
    }
  }
}

StaticKvCache::StaticKvCache(const KvCacheShape& shape, int64_t max_length,
                             const at::TensorOptions& options)
    : DynamicKvCache(shape.num_layers), max_length_(max_length) {
  // Zeros: a kernel that masks what is not in use still multiplies it by zero.
  for (Layer& layer : layers_) {
    layer.keys =
        at::zeros({shape.batch_size, shape.num_kv_heads, max_length, shape.head_dim}, options);
    layer.values = at::zeros_like(layer.keys);
  }
}

int64_t StaticKvCache::capacity_for(int64_t needed, int64_t) const {
  if (needed > max_length_) {
    throw InvalidArgument(
        "nn.kv_cache", "full",
        fmt::format("cache: expected at most {} tokens, got {}", max_length_, needed),
        "make the cache with a larger max_length");
  }
  return max_length_;
}

void StaticKvCache::advance(int64_t num_tokens) {
  if (steps_) {
    capacity_for(length_ + num_tokens, max_length_);
  }
  DynamicKvCache::advance(num_tokens);
}

void StaticKvCache::reset() {
  DynamicKvCache::reset();
  steps_.reset();
}

void StaticKvCache::count_on_device(const at::Tensor& attention_mask, layers::RotaryTables rotary,
                                    layers::RotaryTables sliding) {
  const at::Tensor& keys = layers_.front().keys;
  const auto whole = at::TensorOptions().dtype(at::kInt).device(keys.device());
  DeviceSteps steps;
  steps.counts = at::full({2, keys.size(0)}, length_, whole);
  steps.place = {steps.counts.select(0, 0), steps.counts.select(0, 1)};
  if (attention_mask.defined()) {
    const at::Tensor attended = attention_mask.to(keys.device(), at::kBool);
    steps.place.positions.copy_(attended.narrow(1, 0, length_).sum(1));
    steps.mask = at::zeros({keys.size(0), 1, 1, max_length_}, keys.options())
                     .masked_fill_(attended.logical_not().view({keys.size(0), 1, 1, max_length_}),
                                   -std::numeric_limits<double>::infinity());
  }
  steps.place.positions.sub_(1);
  steps.rotary = std::move(rotary);
  steps.sliding_rotary = std::move(sliding);
  steps_ = std::move(steps);
}

std::pair<at::Tensor, at::Tensor> StaticKvCache::storage(int64_t layer_idx) const {
  const Layer& layer = layers_[layer_idx];
  return {layer.keys, layer.values};
}

void StaticKvCache::reorder(const at::Tensor& beam_idx) {
  if (steps_ && beam_idx.numel() != steps_->counts.size(1)) {
    throw InvalidArgument("nn.kv_cache", "reorder",
                          fmt::format("beam_idx: expected {} rows while tokens are counted on the "
                                      "device, got {}",
                                      steps_->counts.size(1), beam_idx.numel()));
  }
  // In place where the batch keeps its size: captured graphs keep their addresses.
  const auto take = [&](at::Tensor& stored, int64_t dim) {
    const at::Tensor rows = stored.index_select(dim, beam_idx);
    if (rows.sizes() == stored.sizes()) {
      stored.copy_(rows);
      return true;
    }
    return false;
  };
  for (Layer& layer : layers_) {
    for (at::Tensor* stored : {&layer.keys, &layer.values}) {
      at::Tensor used = stored->narrow(2, 0, length_);
      if (!take(used, 0)) {
        *stored = moved(used.index_select(0, beam_idx), length_, max_length_);
      }
    }
  }
  if (steps_) {
    take(steps_->counts, 1);
  }
  if (steps_ && steps_->mask.defined()) {
    take(steps_->mask, 0);
  }
}

}  // namespace graft::nn

// One decode step of a static cache, captured once and replayed for every further token. Internal to the
// room. B rows, V vocabulary.
#pragma once

#include <memory>
#include <string>

#include "graft/models/causal_lm.h"
#include "graft/tensor/device_graph.h"

namespace graft::generation {

class DecodeGraph {
 public:
  // Why steps of the model cannot be captured; empty: they can.
  static std::string refusal(models::CausalLM& model);

  // cache           a static one that holds the prompt
  // attention_mask  [B, max_length], 0 at padding; undefined: no padding
  DecodeGraph(models::CausalLM& model, nn::KvCache& cache, const at::Tensor& attention_mask);

  // Feeds one token per row, [B] int64 on the model's device. The first step runs as it stands, the
  // second is captured.
  // Returns logits [B, 1, V] that the next call overwrites.
  at::Tensor step(const at::Tensor& tokens);

  bool captured() const { return graph_ != nullptr; }
  // Why the capture failed; empty unless it did. Steps then run as they stand.
  const std::string& failure() const { return failure_; }

 private:
  at::Tensor forward();
  void capture();

  models::CausalLM& model_;
  nn::KvCache& cache_;
  at::Tensor ids_;  // [B, 1]
  bool warm_ = false;
  std::unique_ptr<tensor::DeviceGraph> graph_;
  at::Tensor logits_;  // in the graph's memory
  std::string failure_;
};

}  // namespace graft::generation

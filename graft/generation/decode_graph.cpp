#include "graft/generation/decode_graph.h"

#include <c10/util/Exception.h>

#include "graft/core/warn.h"
#include "graft/layers/kernelize.h"

namespace graft::generation {

std::string DecodeGraph::refusal(models::CausalLM& model) {
  std::string reason = tensor::graph_refusal(model.device());
  if (reason.empty()) {
    reason = model.device_steps_refusal();
  }
  return reason.empty() ? layers::capture_refusal(model) : reason;
}

DecodeGraph::DecodeGraph(models::CausalLM& model, nn::KvCache& cache,
                         const at::Tensor& attention_mask)
    : model_(model), cache_(cache) {
  model.count_on_device(cache, attention_mask);
}

at::Tensor DecodeGraph::step(const at::Tensor& tokens) {
  if (!ids_.defined()) {
    ids_ = at::empty({tokens.size(0), 1}, tokens.options());
  }
  ids_.copy_(tokens.unsqueeze(1));
  if (!warm_) {
    // Handles, workspaces and kernels that are made at their first use are there after it.
    warm_ = true;
    return forward();
  }
  if (!captured() && failure_.empty()) {
    capture();
  } else if (captured()) {
    cache_.advance(1);
  }
  if (!captured()) {
    return forward();
  }
  graph_->replay();
  return logits_;
}

at::Tensor DecodeGraph::forward() {
  return model_.forward({.input_ids = ids_, .cache = &cache_, .logits_to_keep = 1});
}

// A forward pass that is recorded moves the host's count on, and its first replay the device's.
void DecodeGraph::capture() {
  auto graph = tensor::make_graph(model_.device());
  try {
    graph->capture([&] { logits_ = forward(); });
    graph_ = std::move(graph);
  } catch (const c10::Error& error) {
    failure_ = "the capture failed: " + std::string(error.what_without_backtrace());
    logits_.reset();
    warn("[generation] decode steps run without a graph: " + failure_);
  }
}

}  // namespace graft::generation

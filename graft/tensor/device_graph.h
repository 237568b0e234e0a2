// Work of a device that is captured once and replayed many times: CUDA graphs, without CUDA's headers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <ATen/ATen.h>

namespace graft::tensor {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Records what `work` enqueues on the current stream, and runs none of it. Tensors made in it lie in
  // memory of the graph's own: they keep their places and are written anew by every replay.
  // Throws   what `work` throws, and c10::Error where something in it cannot be captured; the device
  //          can be used as before then.
  virtual void capture(const std::function<void()>& work) = 0;
  // Enqueues the recorded work on the current stream.
  virtual void replay() = 0;
};

// Why work on `device` cannot be captured; empty: it can. Never throws.
std::string graph_refusal(const at::Device& device);

// Throws   DeviceError `tensor.graph.unavailable` with the reason of graph_refusal().
std::unique_ptr<DeviceGraph> make_graph(const at::Device& device);

}  // namespace graft::tensor

// Swaps kernels into the slots of a model, and takes them out again.
//
//   auto report = graft::layers::kernelize(model, {.device = at::kCPU, .dtype = at::kFloat});
//   std::cout << report.to_text();
#pragma once

#include <optional>

#include <torch/nn/module.h>

#include "graft/layers/kernel_config.h"
#include "graft/layers/trace.h"

namespace graft::layers {

struct KernelizeOptions {
  // Absent: training or inference, as the model's train() and eval() say; then later calls of
  // train() and eval() select again.
  std::optional<Mode> mode;
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  std::optional<KernelConfig> config;
  // A slot without a kernel is an error instead of a line in the report.
  bool strict = false;
};

// For every slot of the model:
//   user's kernel, then the default one (by device, capability and mode) -> resolve -> verify ->
//   load
//   -> adapt -> guard -> swap
// Each step that refuses is written down; the slot then tries the next kernel, at last its
// reference. USE_HUB_KERNELS and DISABLE_KERNEL_MAPPING turn everything off.
//
// Throws   DeviceError when the device is missing; with `strict` IncompatibleError
// `layers.kernelize.strict`
//          naming every slot without a kernel; InvalidArgument for a mode without inference and
//          training.
// Not thread-safe with a forward pass of the same model. Call again after moving the model to
// another device.
KernelizeReport kernelize(torch::nn::Module& model, const KernelizeOptions& options);

// Puts every reference back; the model then computes the same bits as before.
void unkernelize(torch::nn::Module& model);

// What the model's slots have now: the report of the last kernelize(), brought up to date by
// train() and eval(). Nothing when the model was never kernelized.
std::optional<KernelizeReport> kernelize_report(torch::nn::Module& model);

}  // namespace graft::layers

// Swaps kernels into the slots of a model, and takes them out again.
//
//   auto report = graft::layers::kernelize(model);
//   std::cout << report.to_text();
#pragma once

#include <optional>

#include <torch/nn/module.h>

#include "graft/kernel/trust.h"
#include "graft/layers/kernel_config.h"
#include "graft/layers/trace.h"

namespace graft::layers {

// The cases in which a slot may keep its reference; in any other kernelize() throws. Bit flags, as
// upstream's KernelizeFallback; kRefused is ours: a kernel that was found and failed verification,
// signature, numeric variant or the guard.
enum class Fallback : unsigned {
  kNone = 0,
  kNoLayer = 1,                 // the mapping does not know the layer
  kNoDevice = 2,                // nor a kernel for the device
  kNoCompatibleProperties = 4,  // nor one for its compute capability
  kNoCompatibleMode = 8,        // nor one for the mode, or the layer cannot serve it
  kCannotLoad = 16,             // the package is missing, or no variant of it fits
  kRefused = 32,
  kUpstreamDefault = 15,  // what use_fallback=True means in Python
  kAll = 63,
};

struct KernelizeOptions {
  // Absent: training or inference, as the model's train() and eval() say; then later calls of
  // train() and eval() select again.
  std::optional<Mode> mode;
  // Absent: those of the model's first floating-point parameter.
  std::optional<at::Device> device;
  std::optional<at::ScalarType> dtype;
  std::optional<KernelConfig> config;
  Fallback fallback = Fallback::kAll;
  // A slot without a kernel is an error: Fallback::kNone.
  bool strict = false;
  // Only says what would be done: nothing is fetched, loaded or swapped, and the guard does not run.
  // A slot's trace names the kernel that it would get, and the bytes that are missing here.
  bool dry_run = false;
  // Which publishers' kernels may be fetched, beside those that the Hub trusts.
  kernel::TrustPolicy trust = {};
};

// For every slot of the model:
//   user's kernel, then the default one (by device, capability and mode)
//   -> resolve -> verify -> load -> adapt -> guard -> swap
// Each step that refuses is written down; the slot then tries the next kernel, at last its
// reference. USE_HUB_KERNELS and DISABLE_KERNEL_MAPPING turn everything off; that, and a mapping to
// the model's own forward, is never an error.
//
// Throws   DeviceError when the device is missing; InvalidArgument for a mode without inference and
// training, a
//          device that graft does not serve, a layer name in `config` that the model does not have,
//          and a model without parameters when device or dtype is absent; IncompatibleError
//          `layers.kernelize.strict` naming every slot that has no kernel and may not fall back,
//          all references being back in place then.
// Not thread-safe with a forward pass of the same model. Call again after moving the model to
// another device or dtype.
KernelizeReport kernelize(torch::nn::Module& model, const KernelizeOptions& options = {});

// Puts every reference back; the model then computes the same bits as before.
void unkernelize(torch::nn::Module& model);

// What the model's slots have now: the report of the last kernelize(), brought up to date by
// train() and eval(). Nothing when the model was never kernelized.
std::optional<KernelizeReport> kernelize_report(torch::nn::Module& model);

// Why a forward pass of the model cannot be captured into a graph: a kernel of its that does not say it
// is safe there. Empty: it can, as far as the kernels go.
std::string capture_refusal(torch::nn::Module& model);

}  // namespace graft::layers

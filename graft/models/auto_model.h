// Loads a decoder-only language model from a folder or a .gguf file.
//
//   auto model = models::AutoModelForCausalLM::from_pretrained("SmolLM2-135M-Instruct.gguf",
//                                                              {.use_kernels = true});
//   c10::InferenceMode guard;
//   auto logits = model->forward({.input_ids = ids, .logits_to_keep = 1});
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <ATen/ATen.h>

#include "graft/layers/kernel_config.h"
#include "graft/models/causal_lm.h"
#include "graft/models/device_map.h"
#include "graft/models/weights.h"

namespace graft::models {

// Whether the matrices of a quantized .gguf file stay in its packed blocks (layers/packed_weight.h).
//   kAuto      packed where kernels are on, the device is the CPU, no dtype is named and nothing
//              trains; else unpacked
//   kPacked    packed; `dtype` is then that of everything else, float32 by itself. On CUDA the rows that an
//              embedding looks up lie there in that dtype beside the packed ones of a tied head
//   kUnpacked  unpacked to `dtype` at loading
enum class WeightFormat { kAuto, kPacked, kUnpacked };

// `auto`, `packed` or `unpacked`. Throws   InvalidArgument `models.weights.format`.
WeightFormat parse_weight_format(const std::string& text);

struct LoadOptions {
  // Swap optimized kernels in after loading (layers/kernelize.h).
  bool use_kernels = false;
  // Which kernel for which layer, over the defaults. Without use_kernels it switches use_kernels
  // on, with a warning, as transformers does.
  std::optional<layers::KernelConfig> kernel_config;
  // Where the weights go: a device, its name, `auto`, or a map (device_map.h).
  DeviceMap device_map;
  // Absent: the checkpoint's own dtype; float32 for quantized GGUF tensors.
  std::optional<at::ScalarType> dtype;
  // Other files than .gguf have no packed blocks.
  WeightFormat weights = WeightFormat::kAuto;
  // `sdpa`, `eager`, `graft`, `flash_attention_2`, `flash_attention_3` or `org/repo[@ref]`: a caller's
  // choice alone, never a model's (docs/attention.md). CausalLM::set_attn_implementation changes it.
  std::string attn_implementation = "sdpa";
  // A .gguf file inside the folder.
  std::string gguf_file;
  // Of a Hub repository in the local cache: branch, tag or commit; default `main`.
  std::string revision;
  // Weights in memory of their own, with gradients. Otherwise weights on the CPU point into the
  // read-only mapping of the file where the dtype allows it.
  bool trainable = false;
  LoadProgress progress;
};

class AutoModelForCausalLM {
 public:
  // Loads a model and returns it in eval mode.
  //
  // name_or_path  a folder with config.json and model.safetensors (or its .index.json), a folder
  //               with gguf_file, a .gguf file, or a repository id whose snapshot is in the Hub
  //               cache
  // Throws   NotFound when the folder, a file in it, or the snapshot does not exist
  // Throws   FormatError when config or weights break their format or do not fit each other
  // Throws   IncompatibleError for a model_type that graft does not know
  // Throws   InvalidArgument for an unknown attn_implementation, `models.device-map.uncovered`, and
  //          `models.auto_model.packed` for packed weights of another file, on other devices than the
  //          CPU and CUDA, or to train
  // Throws   IncompatibleError `models.attn_implementation.refused` for a kernel that cannot do what the
  //          model asks, before weights are read
  // Throws   DeviceError when the device is missing
  // Blocking: reads files; no network. Memory: at most the weights and one tensor beside.
  static std::shared_ptr<CausalLM> from_pretrained(const std::string& name_or_path,
                                                   const LoadOptions& options = {});
};

}  // namespace graft::models

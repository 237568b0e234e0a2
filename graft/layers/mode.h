// What a layer is used for. Kernels are registered for a mode and looked up in a fixed order.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft::layers {

// Bit flags, as upstream's Mode. kTorchCompile means in C++: safe inside CUDA-graph capture.
enum class Mode : unsigned {
  kFallback = 1,
  kTraining = 2,
  kInference = 4,
  kTorchCompile = 8,
  kInferenceCompile = kInference | kTorchCompile,
  kTrainingCompile = kTraining | kTorchCompile,
};

bool has(Mode mode, Mode flag);

// `inference`, `training`, `fallback`, `inference+compile`, `training+compile`; also upstream's
// spelling `INFERENCE|TORCH_COMPILE`.
// Throws   InvalidArgument for anything else, inference with
// training among it.
Mode parse_mode(std::string_view text);
std::string mode_name(Mode mode);

// The modes whose kernels may serve a request, best first.
//   INFERENCE          INFERENCE, INFERENCE+COMPILE, TRAINING, TRAINING+COMPILE, FALLBACK
//   TRAINING           TRAINING, TRAINING+COMPILE, FALLBACK
//   INFERENCE+COMPILE  INFERENCE+COMPILE, TRAINING+COMPILE, FALLBACK
//   TRAINING+COMPILE   TRAINING+COMPILE, FALLBACK
// Throws   InvalidArgument when `requested` has neither inference nor training.
const std::vector<Mode>& search_order(Mode requested);

}  // namespace graft::layers

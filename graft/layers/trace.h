// What kernelize did, slot by slot: every kernel that was considered, what came of it, and why.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::layers {

// One kernel that was considered for a slot.
struct Consideration {
  std::string kernel;  // `org/repo:Layer`, or empty when there was none to consider
  std::string
      outcome;  // `chosen`, or the code of the refusal, e.g. `kernel.resolver.missing-package`
  std::string reason;  // empty when chosen
};

struct SlotTrace {
  std::string slot;   // place in the model, e.g. `model.layers.0.input_layernorm`
  std::string layer;  // `RMSNorm`
  std::string numeric_variant;
  std::string mode;  // `inference`
  std::vector<Consideration> considered;
  // Empty when the slot keeps its reference.
  std::string chosen;   // `graft-kernels/rms-norm:RMSNorm`
  std::string variant;  // `torch-stable-abi211-cpu-x86_64-linux`
  std::string id;       // namespace of the ops
  std::string source;   // `embedded hub`, `LOCAL_KERNELS`, `path`, `cache`
  std::string commit;   // of the cached snapshot, else empty
};

// How many slots of one layer a package serves.
struct SwappedRow {
  std::string layer;
  std::string package;
  std::string variant;
  int64_t count = 0;
};

struct KernelizeReport {
  std::string device;
  std::string dtype;
  std::string mode;
  std::string disabled_by;  // the variable that turned kernels off, or empty
  double seconds = 0.0;
  std::vector<SlotTrace> slots;

  std::vector<SwappedRow> swapped() const;
  nlohmann::ordered_json to_json() const;
  // A table of one line per layer, package and reason, with the number of slots; ends with a
  // summary line.
  std::string to_text() const;
};

}  // namespace graft::layers

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
  bool encloses = false;  // without a kernel, slots of its own do its work
  std::string inside;     // the slot whose kernel does this one's work too, or empty
  // Empty when the slot keeps its reference.
  std::string chosen;          // `graft-kernels/rms-norm:RMSNorm`
  std::string variant;         // `torch-stable-abi211-cpu-x86_64-linux`
  std::string id;              // namespace of the ops
  std::string source;          // `embedded hub`, `LOCAL_KERNELS`, `path`, `cache`, `Hub`
  std::string commit;          // of a snapshot of the Hub, else empty
  uint64_t bytes_fetched = 0;  // that its package brought or, in a dry run, would bring
  bool is_signed = false;      // of a dry run: the package has a signature; nobody verified it
  bool capturable = true;      // safe inside the capture of a graph; references are
};

// How many slots of one layer a package serves.
struct SwappedRow {
  std::string layer;
  std::string package;
  std::string variant;
  int64_t count = 0;
};

// A package of the Hub that serves the model.
struct FetchedRow {
  std::string package;
  std::string source;  // `Hub` when something came over the network, else `cache`
  std::string commit;
  std::string variant;
  uint64_t bytes_fetched = 0;
  bool is_signed = false;
};

struct KernelizeReport {
  std::string device;
  std::string dtype;
  std::string mode;
  std::string disabled_by;  // the variable that turned kernels off, or empty
  double seconds = 0.0;
  std::vector<SlotTrace> slots;
  bool dry_run = false;  // nothing was done: `chosen` is what would be tried first

  std::vector<SwappedRow> swapped() const;
  // Slots whose work nobody else does: neither inside one that has a kernel, nor enclosing those that work.
  int64_t num_working() const;
  std::vector<FetchedRow> from_hub() const;
  nlohmann::ordered_json to_json() const;
  // A table of one line per layer, package and reason, with the number of slots; ends with a
  // summary line.
  std::string to_text() const;
};

}  // namespace graft::layers

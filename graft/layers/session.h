// One kernelize() call's choices, shared by the slots of one model, so that train() and eval() can
// select again. Internal to the room.
#pragma once

#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::layers {

class KernelSession {
 public:
  KernelSession(const KernelizeOptions& options, at::Device device, at::ScalarType dtype);

  // Chooses a kernel for the slot, or puts its reference back, and writes the trace.
  void select(SlotModule& slot, Mode mode);
  // Called by a slot whose module went into training or evaluation.
  void mode_changed(SlotModule& slot, bool training);

  // An enclosing slot comes before those that it encloses.
  //
  // name   for people   path   of the module in the model
  void add_slot(SlotModule& slot, const std::string& name, const std::string& path);
  KernelizeReport report() const;

 private:
  struct Candidate {
    kernel::LayerReference reference;
    Mode registered;
  };
  std::vector<Candidate> candidates(const SlotModule& slot, Mode mode, SlotTrace& trace) const;
  // Of an enclosing slot: the layer of a part that the user's mapping has a kernel for, or an empty text. A wish for a
  // part comes before the default kernel for the whole, which would not call it.
  std::string part_that_the_user_maps(const SlotModule& slot, Mode mode) const;
  bool try_candidate(SlotModule& slot, Mode mode, const Candidate& candidate,
                     SlotTrace& trace) const;
  // Why nothing is looked up for the slot; nothing: it is.
  std::optional<Consideration> standing_aside(const SlotModule& slot, SlotTrace& trace) const;
  struct LoadOutcome;
  const LoadOutcome& resolve_once(const kernel::LayerReference& reference) const;
  void require_capability(const kernel::PackageLayer& layer, const Candidate& candidate,
                          Mode mode) const;
  // The dry run's apply().
  void plan(Mode mode, const Candidate& candidate, SlotTrace& trace) const;

  // Throws   IncompatibleError `kernel.canary.wrong-answer`.
  void refuse_wrong_answer(const SlotModule& slot, const std::string& layer,
                           const kernel::LoadedKernel& kernel) const;
  void apply(SlotModule& slot, Mode mode, const Candidate& candidate, SlotTrace& trace) const;

  KernelizeOptions options_;
  at::Device device_;
  at::ScalarType dtype_;
  kernel::ResolveRequest request_;  // of no kernel yet
  KernelizeReport facts_;
  std::vector<const SlotModule*> order_;
  std::map<const SlotModule*, std::string> names_;
  struct Enclosing {
    const SlotModule* slot;
    std::string prefix;  // of the paths of what it encloses
    std::vector<const SlotModule*> parts;
  };
  std::vector<Enclosing> enclosing_;
  std::map<const SlotModule*, SlotTrace> traces_;
  // By repository: resolving and hashing once serves all slots, and so does a refusal.
  struct LoadOutcome {
    std::shared_ptr<const kernel::LoadedKernel> kernel;  // none in a dry run
    std::vector<kernel::ResolvedKernel> tree;
    std::exception_ptr refusal;
  };
  mutable std::map<std::string, LoadOutcome> loads_;
};

}  // namespace graft::layers

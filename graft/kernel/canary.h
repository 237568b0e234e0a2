// A package that nobody ran here before runs first in a process of its own: opened, and every
// layer's guard, kept away from files, network and other processes. What crashes, hangs or reaches
// for more than its tensors there never gets into ours.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graft/kernel/canary_process.h"
#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/resolver.h"
#include "graft/kernel/sealed_library.h"

namespace graft::kernel {

// Whether a package goes through the canary, and how.
struct CanaryDecision {
  bool run = true;
  bool ask_records = true;         // a remembered verdict counts
  bool require_isolation = false;  // else a system without isolation is worth a warning, no more
};

// The one place that decides, by GRAFT_CANARY and where the package comes from:
//   on (default)  every package but those of the embedded hub, which come with graft; once
//   strict        the same, and refused where the system cannot isolate it
//   always        every package, at every load
//   off           none
// Throws   InvalidArgument `kernel.canary.setting` for another value.
CanaryDecision decide_canary(const Resolution& resolution);

// What a verdict holds for: the bytes of the libraries, what layers.json says of their ops, PyTorch,
// this version of graft, the processor; for CUDA the driver and the devices as well.
std::string canary_key(const Resolution& resolution, const SealedLibraries& libraries);

// Runs the package in the canary unless that was done before (or need not be), and remembers the
// verdict below private_folder(). Returns the layers that computed something else than the
// reference. Processes that want the same verdict at the same time wait for one of them.
//
// Throws   LoadError `kernel.canary.<status>` (crash, exit, hang, out-of-memory, output, forbidden,
// load) with the reason; `kernel.canary.not-isolated` where isolation is required and not to be had;
// IncompatibleError `kernel.canary.wrong-answer` where no layer computed what the reference does.
// Takes a quarter of a second at first, a few milliseconds later.
std::vector<CanaryWrongAnswer> pass_canary(const std::string& repository,
                                           const Resolution& resolution,
                                           const SealedLibraries& libraries);

// What the canary remembers of a package whose files are here; nothing where it never ran, as it is, on this machine.
// Reads the package, runs nothing.
// Throws   NotFound `kernel.loader.library`, LoadError as for loading it.
std::optional<CanaryVerdict> remembered_verdict(const Resolution& resolution);

// What it said of each package that went through it for this process, remembered or run anew.
struct CanaryNote {
  std::string repository;
  CanaryVerdict verdict;
};
std::vector<CanaryNote> canary_notes();

}  // namespace graft::kernel

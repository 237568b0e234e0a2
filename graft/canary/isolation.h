// Everything that keeps a package in while it runs here for the first time, and the proof that it
// does.
#pragma once

#include <string>
#include <vector>

#include "graft/kernel/canary_report.h"

namespace graft::canary {

// Limits, rights, files and system calls, in this order; then one forbidden thing of each kind is
// tried. To be called while the process has one thread.
// Returns what does not hold, one text for each, e.g. `files: this kernel does not offer it: …`.
std::vector<std::string> isolate(const kernel::CanaryRequest& request);

// From here on, what is forbidden is reported and ends the process; with CUDA it only fails.
void be_strict(const kernel::CanaryRequest& request);

}  // namespace graft::canary

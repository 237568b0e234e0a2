// The guards of a package's layers, run in the helper.
#pragma once

#include <ATen/ATen.h>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/loader.h"

namespace graft::canary {

// Runs the guard of every layer, in every numeric variant that it offers and every dtype that it
// lists, on the device, and the ops that check_published() knows. What an adapter refuses is passed
// over: it is refused later as well. Layers of contracts that graft has no guard for are not run, and
// named in the verdict. Reports each step, and ends the process where memory is out.
// Returns a verdict with the number of guards and the wrong answers.
kernel::CanaryVerdict check_layers(const kernel::LoadedKernel& kernel, at::Device device);

}  // namespace graft::canary

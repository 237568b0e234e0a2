// Ops that no layer stands for, run in the helper: those of published kernels (docs/published-kernels.md) and of the
// gated MLP.
#pragma once

#include <ATen/ATen.h>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/loader.h"

namespace graft::canary {

// Runs what a package has of flash attention, paged attention, the causal convolution, the selective scan, deformable
// attention, megablocks, the steps of vllm-moe and the MLP, with gradients where there are any, on small seeded inputs
// through the adapters that applications use, and holds the results against plain ATen in float64. A family is known
// by its ops, whatever the package is called.
// Adds to the verdict: a check for each op, form and dtype; wrong answers under the op's name; and, of a package
// without layers, the ops that were not run: others, those with another schema, and what an adapter refuses.
void check_published(const kernel::LoadedKernel& kernel, at::Device device,
                     kernel::CanaryVerdict& verdict);

}  // namespace graft::canary

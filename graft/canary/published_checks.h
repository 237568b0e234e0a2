// The ops of published kernels that no layer stands for (docs/published-kernels.md), run in the helper.
#pragma once

#include <ATen/ATen.h>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/loader.h"

namespace graft::canary {

// Runs flash attention, the causal convolution, the selective scan and deformable attention on small
// seeded inputs, through the adapters that applications use, and holds the results against plain ATen
// in float64. Adds to the verdict: a check for each op and dtype, wrong answers, and, under the package's
// name, what is there and was not run: other packages' ops, and what an adapter refuses.
void check_published(const kernel::LoadedKernel& kernel, at::Device device,
                     kernel::CanaryVerdict& verdict);

}  // namespace graft::canary

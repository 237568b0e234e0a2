#include "graft/canary/published_checks.h"

#include "graft/canary/op_checks.h"

namespace graft::canary {

void check_published(const kernel::LoadedKernel& kernel, at::Device device,
                     kernel::CanaryVerdict& verdict) {
  OpChecks checks(kernel, device, verdict);
  for (const auto& family :
       {&check_flash_attention, &check_paged_attention, &check_state_space,
        &check_deformable_attention, &check_megablocks, &check_moe_steps, &check_mlp}) {
    OpChecks::run_group([&] { family(checks); });
  }
  if (kernel.layers.empty()) {
    verdict.unchecked = checks.not_run();
  }
}

}  // namespace graft::canary

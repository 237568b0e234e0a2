#include "graft/canary/published_checks.h"

#include <optional>
#include <set>
#include <string>

#include "graft/canary/op_checks.h"

namespace graft::canary {

namespace {

// The ops that a package's layers name, which the guards have run; nothing where adapters of published kernels know them
// alone.
std::optional<std::set<std::string>> ops_of_layers(const kernel::LoadedKernel& kernel) {
  std::set<std::string> ops;
  for (const auto& [name, layer] : kernel.layers) {
    if (!layer.published.empty()) {
      return std::nullopt;
    }
    for (const auto& [role, op] : layer.ops) {
      ops.insert(op.op);
    }
  }
  return ops;
}

}  // namespace

void check_published(const kernel::LoadedKernel& kernel, at::Device device,
                     kernel::CanaryVerdict& verdict) {
  OpChecks checks(kernel, device, verdict);
  for (const auto& family :
       {&check_flash_attention, &check_paged_attention, &check_state_space,
        &check_deformable_attention, &check_megablocks, &check_moe_steps, &check_mlp}) {
    OpChecks::run_group([&] { family(checks); });
  }
  const auto of_layers = ops_of_layers(kernel);
  if (!of_layers) {
    return;
  }
  for (const std::string& op : checks.not_run()) {
    if (!of_layers->contains(op)) {
      verdict.unchecked.push_back(op);
    }
  }
}

}  // namespace graft::canary

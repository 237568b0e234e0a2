#include "cli/command.h"

namespace graft::cli {

void add_kernels(CLI::App& app, Chosen& chosen) {
  auto* kernels = app.add_subcommand("kernels", "Kernel packages of the Hub (docs/hub.md)");
  kernels->require_subcommand(1);
  add_kernels_packages(*kernels, chosen);
  add_kernels_lock(*kernels, chosen);
  add_kernels_aot(*kernels, chosen);
  add_kernels_trust(*kernels, chosen);
  add_kernels_cache(*kernels, chosen);
}

}  // namespace graft::cli

// `graft kernels lock | verify | diff`.
#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

namespace {

void run_with(CLI::App& command, const std::shared_ptr<KernelsOptions>& options, Chosen& chosen,
              int (*TorchCommands::*runner)(const KernelsOptions&)) {
  add_common_options(command, options->common);
  command.callback([options, runner, &chosen] {
    chosen = {[options, runner] { return (torch_commands().*runner)(*options); }, &options->common};
  });
}

}  // namespace

void add_kernels_lock(CLI::App& kernels, Chosen& chosen) {
  auto lock = std::make_shared<KernelsOptions>();
  auto* command = kernels.add_subcommand(
      "lock", "Write kernels.lock, which Python reads, and kernels.hashes.lock beside it");
  command->add_option("PROJECT", lock->project,
                      "Folder whose pyproject.toml has [tool.kernels.dependencies]");
  command->add_option("--kernel", lock->kernels, "org/repo@v1; may be given several times");
  command->add_option("-o,--output", lock->lock,
                      "Lock to write (default: kernels.lock in PROJECT)");
  command->add_flag("--trust-remote-code", lock->trust_remote_code,
                    "Trust these publishers, whatever the Hub says of them");
  command->add_flag("--dry-run", lock->dry_run, "Print what would change; write no lock");
  run_with(*command, lock, chosen, &TorchCommands::kernels_lock);

  auto verify = std::make_shared<KernelsOptions>();
  command = kernels.add_subcommand(
      "verify", "Hold what is in the cache against digests, and against a lock; asks no network");
  command->add_option("KERNEL", verify->kernels, "org/repo[@ref], or the path of a folder");
  command->add_option("--lock", verify->lock, "Everything that a kernels.lock names");
  command->add_option("--device", verify->device, "cpu or cuda")->capture_default_str();
  run_with(*command, verify, chosen, &TorchCommands::kernels_verify);

  auto diff = std::make_shared<KernelsOptions>();
  command = kernels.add_subcommand("diff",
                                   "Show what differs between two locks; exit code 1 when they do");
  command->add_option("OLD", diff->lock, "A kernels.lock")->required();
  command->add_option("NEW", diff->other_lock, "Another")->required();
  run_with(*command, diff, chosen, &TorchCommands::kernels_diff);
}

}  // namespace graft::cli

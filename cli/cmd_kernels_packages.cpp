// `graft kernels get | list | info | variants`.
#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

namespace {

constexpr char kKernelHelp[] = "org/repo[@v1|@>=0.1,<0.2|@tag|@commit], or the path of a folder";

using Runner = int (*TorchCommands::*)(const KernelsOptions&);

std::shared_ptr<KernelsOptions> add(CLI::App& kernels, Chosen& chosen, CLI::App*& command,
                                    const char* name, const char* help, Runner runner) {
  auto options = std::make_shared<KernelsOptions>();
  command = kernels.add_subcommand(name, help);
  add_common_options(*command, options->common);
  command->callback([options, runner, &chosen] {
    chosen = {[options, runner] { return (torch_commands().*runner)(*options); }, &options->common};
  });
  return options;
}

void add_device(CLI::App& command, KernelsOptions& options) {
  command.add_option("--device", options.device, "cpu or cuda: for which device to choose")
      ->capture_default_str();
}

}  // namespace

void add_kernels_packages(CLI::App& kernels, Chosen& chosen) {
  CLI::App* command = nullptr;
  auto get = add(kernels, chosen, command, "get",
                 "Bring the variant for this machine into the cache; prints its folder",
                 &TorchCommands::kernels_get);
  command->add_option("KERNEL", get->kernels, kKernelHelp);
  command->add_option("--lock", get->lock, "Everything that a kernels.lock names, at its commits");
  command->add_flag("--trust-remote-code", get->trust_remote_code,
                    "Trust these publishers, whatever the Hub says of them");
  command->add_flag("--allow-rollback", get->allow_rollback,
                    "Follow a branch that went back to a commit it stood at before");
  command->add_flag("--dry-run", get->dry_run, "Say what would be fetched; fetch nothing");
  add_device(*command, *get);

  add(kernels, chosen, command, "list", "List the kernel packages that are on this machine",
      &TorchCommands::kernels_list);

  auto info =
      add(kernels, chosen, command, "info", "Show what a package says of itself; fetches nothing",
          &TorchCommands::kernels_info);
  command->add_option("KERNEL", info->kernels, kKernelHelp)->required();
  command->add_flag("--trust-remote-code", info->trust_remote_code, "Trust its publisher");
  add_device(*command, *info);

  auto variants = add(kernels, chosen, command, "variants",
                      "List a package's build variants: which fits this machine, why others do not",
                      &TorchCommands::kernels_variants);
  command->add_option("KERNEL", variants->kernels, kKernelHelp)->required();
  command->add_flag("--all", variants->all, "Of every version");
  add_device(*command, *variants);
}

}  // namespace graft::cli

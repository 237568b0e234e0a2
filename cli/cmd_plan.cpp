#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_plan(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<PlanOptions>();
  auto* command = app.add_subcommand(
      "plan", "Show which kernel every layer would get and what would be fetched; touches nothing");
  add_model_options(*command, options->model);
  command->add_option("--mode", options->mode, "inference, training, or either with +compile")
      ->capture_default_str();
  command->add_flag("--trust-remote-code", options->trust_remote_code,
                    "Trust every publisher whose kernels the mapping names");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().plan(*options); }, &options->common};
  });
}

}  // namespace graft::cli

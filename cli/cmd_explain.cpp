#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_explain(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<ExplainOptions>();
  auto* command = app.add_subcommand(
      "explain", "Show which kernel every layer gets, what was refused, and why");
  add_model_options(*command, options->model);
  command->add_option("--mode", options->mode, "inference, training, or either with +compile")
      ->capture_default_str();
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().explain(*options); }, &options->common};
  });
}

}  // namespace graft::cli

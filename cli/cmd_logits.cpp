#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_logits(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<LogitsOptions>();
  auto* command = app.add_subcommand("logits", "Write a model's logits for given token ids");
  add_model_options(*command, options->model);
  command->add_option("--ids", options->ids, "Token ids: 1,2,3")->required();
  command->add_option("--out", options->out, "safetensors file to write (float32, key `logits`)")
      ->required();
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().logits(*options); }, &options->common};
  });
}

}  // namespace graft::cli

#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_doctor(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<DoctorOptions>();
  auto* command =
      app.add_subcommand("doctor", "Show what this machine offers, and what is wrong with it");
  command->footer(
      "Each line says ok, warn or fail; warn and fail come with a reason and a way on.\n"
      "Exit code: 0 when no line says fail, else 1.");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().doctor(*options); }, &options->common};
  });
}

}  // namespace graft::cli

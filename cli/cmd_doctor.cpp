#include <memory>

#include "cli/command.h"
#include "cli/torch_commands.h"

namespace graft::cli {

void add_doctor(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<DoctorOptions>();
  auto* command = app.add_subcommand(
      "doctor", "Show what this machine offers: devices, libtorch, kernel packages");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return torch_commands().doctor(*options); }, &options->common};
  });
}

}  // namespace graft::cli

#include "cli/run.h"
#include "cli/torch_commands.h"

extern "C" const graft::cli::TorchCommands* graft_torch_commands() {
  static const graft::cli::TorchCommands commands = {
      graft::cli::run_generate, graft::cli::run_logits, graft::cli::run_explain,
      graft::cli::run_doctor};
  return &commands;
}

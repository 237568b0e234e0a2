#include "cli/run.h"
#include "cli/torch_commands.h"

extern "C" const graft::cli::TorchCommands* graft_torch_commands() {
  static const graft::cli::TorchCommands commands = {graft::cli::run_generate,
                                                     graft::cli::run_logits,
                                                     graft::cli::run_explain,
                                                     graft::cli::run_doctor,
                                                     graft::cli::run_plan,
                                                     graft::cli::run_kernels_get,
                                                     graft::cli::run_kernels_list,
                                                     graft::cli::run_kernels_info,
                                                     graft::cli::run_kernels_variants,
                                                     graft::cli::run_kernels_lock,
                                                     graft::cli::run_kernels_verify,
                                                     graft::cli::run_kernels_diff,
                                                     graft::cli::run_kernels_aot};
  return &commands;
}

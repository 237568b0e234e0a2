// Commands that need libtorch live in a library of their own, opened when one of them runs: so
// `graft --version` and `graft --help` start in milliseconds.
#pragma once

#include "cli/options.h"

namespace graft::cli {

struct TorchCommands {
  int (*generate)(const GenerateOptions&);
  int (*logits)(const LogitsOptions&);
  int (*explain)(const ExplainOptions&);
  int (*doctor)(const DoctorOptions&);
  int (*plan)(const PlanOptions&);
  int (*kernels_get)(const KernelsOptions&);
  int (*kernels_list)(const KernelsOptions&);
  int (*kernels_info)(const KernelsOptions&);
  int (*kernels_variants)(const KernelsOptions&);
  int (*kernels_lock)(const KernelsOptions&);
  int (*kernels_verify)(const KernelsOptions&);
  int (*kernels_diff)(const KernelsOptions&);
  int (*kernels_aot)(const AotOptions&);
};

// Opens libgraft_commands.so beside the program and returns its table.
// Throws LoadError when the library or libtorch cannot be loaded.
const TorchCommands& torch_commands();

}  // namespace graft::cli

// The one symbol that libgraft_commands.so exports for the program.
extern "C" const graft::cli::TorchCommands* graft_torch_commands();

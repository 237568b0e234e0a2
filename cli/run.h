// The commands behind libgraft_commands.so, one per run_<name>.cpp. Each returns an exit code and
// throws graft::Error for what fails.
#pragma once

#include "cli/options.h"

namespace graft::cli {

int run_generate(const GenerateOptions& options);
int run_logits(const LogitsOptions& options);
int run_explain(const ExplainOptions& options);
int run_doctor(const DoctorOptions& options);

}  // namespace graft::cli

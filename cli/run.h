// The commands behind libgraft_commands.so, one per run_<name>.cpp. Each returns an exit code and
// throws graft::Error for what fails.
#pragma once

#include "cli/options.h"

namespace graft::cli {

int run_generate(const GenerateOptions& options);
int run_logits(const LogitsOptions& options);
int run_explain(const ExplainOptions& options);
int run_doctor(const DoctorOptions& options);
int run_plan(const PlanOptions& options);
int run_kernels_get(const KernelsOptions& options);
int run_kernels_list(const KernelsOptions& options);
int run_kernels_info(const KernelsOptions& options);
int run_kernels_variants(const KernelsOptions& options);
int run_kernels_lock(const KernelsOptions& options);
int run_kernels_verify(const KernelsOptions& options);
int run_kernels_diff(const KernelsOptions& options);
int run_kernels_aot(const AotOptions& options);

}  // namespace graft::cli

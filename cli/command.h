// The command table: each command adds its options to the parser and hands back what to run.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/options.h"

namespace graft::cli {

// Returns the exit code.
using Run = std::function<int()>;

// Set by the callback of the chosen subcommand.
struct Chosen {
  Run run;
  const CommonOptions* common = nullptr;
};

// One function per cmd_<name>.cpp.
void add_generate(CLI::App& app, Chosen& chosen);
void add_tokenize(CLI::App& app, Chosen& chosen);
void add_logits(CLI::App& app, Chosen& chosen);
void add_explain(CLI::App& app, Chosen& chosen);
void add_doctor(CLI::App& app, Chosen& chosen);
void add_info(CLI::App& app, Chosen& chosen);
void add_download(CLI::App& app, Chosen& chosen);
void add_hub(CLI::App& app, Chosen& chosen);
void add_plan(CLI::App& app, Chosen& chosen);
void add_kernels(CLI::App& app, Chosen& chosen);
void add_cache(CLI::App& app, Chosen& chosen);
void add_bench(CLI::App& app, Chosen& chosen);

// Commands below `kernels`.
void add_kernels_packages(CLI::App& kernels, Chosen& chosen);
void add_kernels_lock(CLI::App& kernels, Chosen& chosen);
void add_kernels_aot(CLI::App& kernels, Chosen& chosen);
void add_kernels_trust(CLI::App& kernels, Chosen& chosen);
void add_kernels_cache(CLI::App& kernels, Chosen& chosen);

// Options that several commands share.
void add_common_options(CLI::App& command, CommonOptions& options);
void add_model_options(CLI::App& command, ModelOptions& options);

}  // namespace graft::cli

#include <cstdlib>
#include <iterator>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/core/version.h"

#include "cli/command.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  graft generate --prompt \"The capital of France is\"     text from the demo model\n"
    "  graft generate MODEL --chat \"Hello\" --device cuda      a folder, a .gguf file or a Hub "
    "id\n"
    "  graft explain MODEL --device cuda                      which kernel each layer gets, and "
    "why\n"
    "  graft doctor                                           what this machine offers\n"
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 network, 4 integrity, 5 device or kernel, 130 "
    "interrupted";

constexpr void (*kCommands[])(CLI::App&, Chosen&) = {
    add_generate, add_tokenize, add_logits, add_explain, add_info, add_doctor,
};

void set_log_level(const CommonOptions& common) {
  if (common.quiet) {
    log()->set_level(spdlog::level::err);
  } else if (common.verbosity > 0) {
    log()->set_level(common.verbosity > 1 ? spdlog::level::debug : spdlog::level::info);
  }
}

int main_with_errors(int argc, char** argv) {
  CLI::App app{"graft: Hugging Face models in C++ with optimized kernels swapped in", "graft"};
  app.set_version_flag("--version", fmt::format("graft {}", kVersion));
  app.require_subcommand(1);
  app.footer(kFooter);
  Chosen chosen;
  for (const auto& add : kCommands) {
    add(app, chosen);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  set_log_level(*chosen.common);
  try {
    return chosen.run();
  } catch (const std::exception& error) {
    return report_error(error, chosen.common->json);
  }
}

}  // namespace

}  // namespace graft::cli

int main(int argc, char** argv) { return graft::cli::main_with_errors(argc, argv); }

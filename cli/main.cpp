#include <algorithm>
#include <csignal>
#include <iterator>  // spdlog forgets it
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/core/version.h"

#include "cli/command.h"
#include "cli/output.h"
#include "cli/suggest.h"

namespace graft::cli {

namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  graft generate --prompt \"The capital of France is\"     text from the demo model\n"
    "  graft generate MODEL --chat \"Hello\" --device cuda      a folder, a .gguf file or a Hub "
    "id\n"
    "  graft plan MODEL --kernel-config FILE                  the same before anything is fetched\n"
    "  graft explain MODEL --device cuda                      which kernel each layer gets, and "
    "why\n"
    "  graft doctor                                           what this machine offers\n"
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 network, 4 integrity, 5 device or kernel, 130 "
    "interrupted";

constexpr void (*kCommands[])(CLI::App&, Chosen&) = {
    add_generate, add_tokenize, add_logits,   add_plan,  add_explain, add_info,
    add_doctor,   add_kernels,  add_download, add_cache, add_hub,     add_bench,
};

void set_log_level(const CommonOptions& common) {
  if (common.quiet) {
    log()->set_level(spdlog::level::err);
  } else if (common.verbosity > 0) {
    log()->set_level(common.verbosity > 1 ? spdlog::level::debug : spdlog::level::info);
  }
}

// Names of the commands, or the long options of one.
std::vector<std::string> words(CLI::App& app, bool options) {
  std::vector<std::string> names;
  if (!options) {
    for (const auto* command : app.get_subcommands({})) {
      names.push_back(command->get_name());
    }
    return names;
  }
  for (auto* command : app.get_subcommands()) {
    for (auto* option : command->get_options()) {
      for (const auto& name : option->get_lnames()) {
        names.push_back("--" + name);
      }
    }
  }
  return names;
}

// What the parser says is wrong, with the word that was probably meant.
InvalidArgument usage_error(CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  std::string text = error.what();
  std::string meant;
  const auto commands = words(app, /*options=*/false);
  const std::string first = argc > 1 ? argv[1] : "";
  if (!first.empty() && first[0] != '-' &&
      std::find(commands.begin(), commands.end(), first) == commands.end()) {
    text = fmt::format("command: expected {}, got `{}`", fmt::join(commands, ", "), first);
    meant = nearest(first, commands);
  } else {
    for (const auto& word : app.remaining(/*recurse=*/true)) {
      const std::string name = word.substr(0, word.find('='));
      meant = meant.empty() ? nearest(name, words(app, /*options=*/true)) : meant;
    }
  }
  const std::string help = "run with --help for more";
  return {"cli", "usage", text, meant.empty() ? help : fmt::format("did you mean `{}`?", meant)};
}

int main_with_errors(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its write, with a text
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
    if (error.get_exit_code() == 0) {
      return app.exit(error);
    }
    const bool json = std::find(argv, argv + argc, std::string_view("--json")) != argv + argc;
    return report_error(usage_error(app, error, argc, argv), json);
  }
  set_log_level(*chosen.common);
  try {
    return chosen.run();
  } catch (const ClosedPipe&) {
    return kClosedPipeExitCode;
  } catch (const std::exception& error) {
    return report_error(error, chosen.common->json);
  }
}

}  // namespace

}  // namespace graft::cli

int main(int argc, char** argv) { return graft::cli::main_with_errors(argc, argv); }

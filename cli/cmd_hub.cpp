#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/error.h"

#include "cli/command.h"
#include "cli/hub_commands.h"
#include "cli/library.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

// Under its name only once it is complete: whoever waits for the file may read it at once.
void write_port_file(const fs::path& path, int port) {
  auto temporary = path;
  temporary += ".incomplete";
  std::error_code error;
  std::ofstream file(temporary);
  file << port << "\n";
  file.close();
  fs::rename(temporary, path, error);
  if (!file || error) {
    throw Error("cli.hub", "port-file",
                fmt::format("`{}`: expected a file that can be written", path.string()));
  }
}

// Signals that end the program, held back from every thread that starts while this lives.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~StopSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  void wait() const {
    int signal = 0;
    sigwait(&signals_, &signal);
  }

 private:
  sigset_t signals_{};
  sigset_t before_{};
};

int run(const HubServeOptions& options) {
  const StopSignals signals;
  void* symbol =
      library_symbol("libgraft_hub_commands.so", "graft_hub_start", RTLD_NOW | RTLD_LOCAL,
                     "hub-commands", "it needs the package libcpp-httplib0.11 or its like");
  std::unique_ptr<hub::server::Running> server;
  reinterpret_cast<decltype(&graft_hub_start)>(symbol)(
      {options.folder, options.host, options.port, options.large_file_port, options.faults,
       options.page_size},
      server);
  if (!options.port_file.empty()) {
    write_port_file(options.port_file, server->port());
  }
  if (options.common.json) {
    print_json({{"url", server->url()},
                {"port", server->port()},
                {"large_file_port", server->large_file_port()}});
  } else {
    write_stdout(server->url() + "\n");
    print_note(options.common,
               fmt::format("serving {}; HF_ENDPOINT={} points a client here; Ctrl-C stops",
                           options.folder, server->url()));
  }
  if (options.host != "127.0.0.1" && options.host != "::1" && options.host != "localhost") {
    print_note(options.common,
               "other machines can reach this Hub: it has no TLS, and tokens travel in the clear");
  }
  signals.wait();
  return 0;
}

}  // namespace

void add_hub(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<HubServeOptions>();
  auto* hub = app.add_subcommand("hub", "A Hub of your own");
  hub->require_subcommand(1);
  auto* command = hub->add_subcommand(
      "serve",
      "Serve a folder of repositories as the Hub does; prints its URL (docs/hub_serve.md)");
  command->add_option("DIR", options->folder, "Folder with <type>s/<org>/<name>/ or <org>/<name>/")
      ->required();
  command->add_option("--host", options->host, "Address to listen on")->capture_default_str();
  command->add_option("--port", options->port, "Port; 0: a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->add_option("--port-file", options->port_file, "Write the port here once it answers");
  command
      ->add_option("--large-file-port", options->large_file_port,
                   "Serve large files from this port, as another origin; 0: a free one")
      ->check(CLI::Range(0, 65535));
  command->add_option("--faults", options->faults, "JSON file of faults to inject, for tests");
  command->add_option("--page-size", options->page_size, "Entries of one page of a tree")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli

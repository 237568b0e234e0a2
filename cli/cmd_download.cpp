#include <memory>

#include <fmt/format.h>

#include "graft/hub/cache.h"
#include "graft/hub/download.h"

#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"

namespace graft::cli {

namespace {

int run(const DownloadOptions& options) {
  const auto type = options.kernel ? hub::RepoType::kKernel : hub::RepoType::kModel;
  ProgressBar bar(options.common, "downloading");
  hub::DownloadOptions download;
  download.allow_patterns = options.include;
  download.progress = [&bar](const hub::DownloadProgress& progress) {
    bar.update(progress.done_bytes, progress.total_bytes, /*bytes=*/true, progress.file.path);
  };
  const auto snapshot =
      hub::download_snapshot(hub::Client(), type, options.repo_id, options.revision, download);
  if (options.common.json) {
    print_json({{"repo_id", options.repo_id},
                {"commit", snapshot.commit},
                {"folder", snapshot.folder.string()}});
  } else {
    write_stdout(snapshot.folder.string() + "\n");
    print_note(options.common, fmt::format("{} at {}", options.repo_id, snapshot.commit));
  }
  return 0;
}

}  // namespace

void add_download(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<DownloadOptions>();
  auto* command = app.add_subcommand(
      "download", "Bring a Hub repository into the cache that Python shares; prints its folder");
  command->add_option("REPO", options->repo_id, "Hub id: org/name")->required();
  command->add_option("--revision", options->revision, "Branch, tag or commit")
      ->capture_default_str();
  command->add_option("--include", options->include,
                      "Shell pattern of files to bring; may be given several times");
  command->add_flag("--kernel", options->kernel, "REPO is a kernel repository");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli

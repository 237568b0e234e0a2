#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "graft/core/printable.h"
#include "graft/hub/cache.h"
#include "graft/hub/download.h"

#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"

namespace graft::cli {

namespace {

std::vector<std::string> names_of(const std::vector<hub::RepoFile>& files) {
  std::vector<std::string> names;
  for (const auto& file : files) {
    names.push_back(file.path);
  }
  return names;
}

int run(const DownloadOptions& options) {
  const auto type = options.kernel ? hub::RepoType::kKernel : hub::RepoType::kModel;
  ProgressBar bar(options.common, "downloading");
  hub::DownloadOptions download;
  download.allow_patterns = options.include;
  download.progress = [&bar](const hub::DownloadProgress& progress) {
    bar.update(progress.done_bytes, progress.total_bytes, /*bytes=*/true, progress.file.path);
  };
  download.dry_run = options.dry_run;
  const InterruptNote interrupt(options.common, kDownloadInterrupted);
  const auto snapshot =
      hub::download_snapshot(hub::Client(), type, options.repo_id, options.revision, download);
  if (options.common.json) {
    print_json({{"repo_id", options.repo_id},
                {"commit", snapshot.commit},
                {"folder", snapshot.folder.string()},
                {"files", names_of(snapshot.files)},
                {"size_bytes", snapshot.size_bytes},
                {"bytes_fetched", snapshot.bytes_fetched},
                {"dry_run", options.dry_run}});
    return 0;
  }
  if (options.dry_run) {
    for (const auto& file : snapshot.files) {
      write_report(
          fmt::format("{:>12}  {}\n", format_bytes(file.size_bytes), printable_line(file.path)));
    }
  } else {
    write_stdout(snapshot.folder.string() + "\n");
  }
  const std::string what = fmt::format("{} at {}", options.repo_id, snapshot.commit);
  print_note(
      options.common,
      snapshot.files.empty()
          ? what + ": as it lies there, since nobody can say which files it should have"
          : fmt::format("{}: {} files of {}, {} {}", what, snapshot.files.size(),
                        format_bytes(snapshot.size_bytes), format_bytes(snapshot.bytes_fetched),
                        options.dry_run ? "to fetch" : "fetched"));
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
  command->add_flag("--dry-run", options->dry_run, "Show what would come; write nothing");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli

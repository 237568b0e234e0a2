#include <algorithm>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/core/printable.h"
#include "graft/hub/environment.h"
#include "graft/hub/inventory.h"

#include "cli/command.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

using hub::CachedCommit;
using hub::CachedRepository;
using hub::RepoType;
using nlohmann::ordered_json;

struct CacheOptions {
  CommonOptions common;
  std::vector<std::string> repos;  // org/name, or org/name@ref or commit
  bool kernels_only = false;
  bool unnamed = false;
  bool dry_run = false;
  bool yes = false;
};

const char* name_of(RepoType type) { return type == RepoType::kModel ? "model" : "kernel"; }

std::vector<CachedRepository> repositories(const CacheOptions& options) {
  auto found = hub::list_cached(hub::kernels_cache_folder(), RepoType::kKernel);
  if (!options.kernels_only) {
    auto models = hub::list_cached(hub::cache_folder(), RepoType::kModel);
    found.insert(found.end(), std::make_move_iterator(models.begin()),
                 std::make_move_iterator(models.end()));
  }
  return found;
}

// A repository that was named, and the commit of it where one was.
struct Named {
  CachedRepository repository;
  std::optional<CachedCommit> commit;
};

bool is_meant(const CachedCommit& commit, const std::string& ref) {
  return commit.commit == ref ||
         std::find(commit.refs.begin(), commit.refs.end(), ref) != commit.refs.end();
}

// `org/name` or `org/name@ref`; one name may be a model's and a kernel's.
std::vector<Named> find_named(const std::vector<CachedRepository>& all, const std::string& text) {
  const auto at = text.find('@');
  const std::string repo_id = text.substr(0, at);
  std::vector<Named> found;
  for (const auto& repository : all) {
    if (repository.repo_id != repo_id) {
      continue;
    }
    if (at == std::string::npos) {
      found.push_back({repository, std::nullopt});
      continue;
    }
    for (const auto& commit : repository.commits) {
      if (is_meant(commit, text.substr(at + 1))) {
        found.push_back({repository, commit});
      }
    }
  }
  if (found.empty()) {
    throw NotFound(
        "cli.cache", "repository",
        fmt::format("`{}`: expected a repository of the cache, or one @ a branch, tag or "
                    "commit of it",
                    text),
        "`graft cache ls` shows what is there");
  }
  return found;
}

std::vector<Named> chosen_or_all(const CacheOptions& options) {
  const auto all = repositories(options);
  std::vector<Named> chosen;
  for (const auto& text : options.repos) {
    for (auto& named : find_named(all, text)) {
      chosen.push_back(std::move(named));
    }
  }
  if (options.repos.empty()) {
    for (const auto& repository : all) {
      chosen.push_back({repository, std::nullopt});
    }
  }
  return chosen;
}

int list(const CacheOptions& options) {
  const auto all = repositories(options);
  ordered_json rows = ordered_json::array();
  uint64_t total_bytes = 0;
  size_t width = 10;
  for (const auto& repository : all) {
    width = std::max(width, repository.repo_id.size());
  }
  for (const auto& repository : all) {
    total_bytes += repository.size_bytes;
    ordered_json commits = ordered_json::array();
    for (const auto& commit : repository.commits) {
      commits.push_back({{"commit", commit.commit},
                         {"refs", commit.refs},
                         {"variants", commit.variants},
                         {"files", commit.num_files},
                         {"size_bytes", commit.size_bytes}});
      if (!options.common.json) {
        write_stdout(printable(fmt::format(
                         "{:<6}  {:<{}}  {}  {:>10}  {:>4} files  {}", name_of(repository.type),
                         repository.repo_id, width, commit.commit.substr(0, 12),
                         format_bytes(commit.size_bytes), commit.num_files,
                         commit.refs.empty() ? "-" : fmt::to_string(fmt::join(commit.refs, ",")))) +
                     "\n");
      }
    }
    rows.push_back({{"type", name_of(repository.type)},
                    {"repo_id", repository.repo_id},
                    {"folder", repository.folder.string()},
                    {"size_bytes", repository.size_bytes},
                    {"commits", commits}});
  }
  if (options.common.json) {
    print_json({{"repositories", rows}, {"size_bytes", total_bytes}});
  } else {
    print_note(options.common,
               fmt::format("{} repositories, {}", all.size(), format_bytes(total_bytes)));
  }
  return 0;
}

bool person_agrees(const CacheOptions& options) {
  if (options.yes) {
    return true;
  }
  if (isatty(STDIN_FILENO) == 0 || options.common.json) {
    throw InvalidArgument("cli.cache", "yes", "expected --yes, since nobody can be asked here",
                          "--dry-run shows what would go");
  }
  write_stderr("remove these? [y/N] ");
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

// Shows what would go, asks, and removes.
int carry_out(const CacheOptions& options, const std::vector<hub::Removal>& removals) {
  ordered_json paths = ordered_json::array();
  uint64_t freed_bytes = 0;
  for (const auto& removal : removals) {
    freed_bytes += removal.freed_bytes;
    for (const auto& path : removal.paths) {
      paths.push_back(path.string());
      if (!options.common.json) {
        print_note(options.common, path.string());
      }
    }
  }
  const bool nothing = paths.empty();
  const bool removes = !nothing && !options.dry_run && person_agrees(options);
  if (removes) {
    for (const auto& removal : removals) {
      hub::remove(removal);
    }
  }
  if (options.common.json) {
    print_json({{"paths", paths}, {"size_bytes", freed_bytes}, {"removed", removes}});
  } else {
    print_note(options.common, nothing ? "nothing to remove"
                                       : fmt::format("{} {}", removes ? "removed" : "would remove",
                                                     format_bytes(freed_bytes)));
  }
  return 0;
}

int remove(const CacheOptions& options) {
  std::vector<hub::Removal> removals;
  for (const auto& named : chosen_or_all(options)) {
    removals.push_back(named.commit ? hub::plan_removal(named.repository, *named.commit)
                                    : hub::plan_removal(named.repository));
  }
  return carry_out(options, removals);
}

int prune(const CacheOptions& options) {
  std::vector<hub::Removal> removals;
  for (const auto& repository : repositories(options)) {
    removals.push_back(hub::plan_prune(repository, options.unnamed));
  }
  return carry_out(options, removals);
}

void say(const std::string& where, const char* what, const std::vector<std::string>& names) {
  for (const auto& name : names) {
    write_stdout(printable(fmt::format("{}  {}  {}", where, what, name)) + "\n");
  }
}

int verify(const CacheOptions& options) {
  ordered_json rows = ordered_json::array();
  size_t num_right = 0;
  size_t num_wrong = 0;
  for (const auto& [repository, wanted] : chosen_or_all(options)) {
    for (const auto& commit : repository.commits) {
      if (wanted && wanted->commit != commit.commit) {
        continue;
      }
      const auto verdict = hub::verify_commit(repository, commit);
      num_right += verdict.num_right;
      num_wrong += verdict.damaged.size() + verdict.missing.size();
      rows.push_back({{"type", name_of(repository.type)},
                      {"repo_id", repository.repo_id},
                      {"commit", commit.commit},
                      {"right", verdict.num_right},
                      {"damaged", verdict.damaged},
                      {"missing", verdict.missing},
                      {"unknown", verdict.unknown}});
      if (!options.common.json) {
        const auto where = fmt::format("{}@{}", repository.repo_id, commit.commit.substr(0, 12));
        say(where, "damaged", verdict.damaged);
        say(where, "missing", verdict.missing);
        say(where, "unknown", verdict.unknown);
      }
    }
  }
  if (options.common.json) {
    print_json({{"commits", rows}, {"right", num_right}, {"wrong", num_wrong}});
  } else {
    print_note(options.common, fmt::format("{} files are right, {} are not", num_right, num_wrong));
    if (num_wrong > 0) {
      print_note(options.common, "`graft download REPO --revision COMMIT` fetches them anew");
    }
  }
  constexpr int kIntegrityExitCode = 4;
  return num_wrong == 0 ? 0 : kIntegrityExitCode;
}

using Action = int (*)(const CacheOptions&);

CLI::App* add_action(CLI::App& group, const char* name, const char* help, Action action,
                     const std::shared_ptr<CacheOptions>& options, Chosen& chosen) {
  auto* command = group.add_subcommand(name, help);
  add_common_options(*command, options->common);
  command->callback([options, action, &chosen] {
    chosen = {[options, action] { return action(*options); }, &options->common};
  });
  return command;
}

void add_removing_options(CLI::App& command, CacheOptions& options) {
  command.add_flag("--dry-run", options.dry_run, "Only show what would go");
  command.add_flag("-y,--yes", options.yes, "Remove without asking");
}

void add_group(CLI::App& parent, bool kernels_only, Chosen& chosen) {
  const auto options = std::make_shared<CacheOptions>();
  options->kernels_only = kernels_only;
  auto* group = parent.add_subcommand(
      "cache", kernels_only ? "What lies in the cache of kernels"
                            : "What lies in the cache of models and kernels that Python shares");
  group->require_subcommand(1);
  const char* what = "org/name, or org/name@ref for one branch, tag or commit";
  add_action(*group, "ls", "List repositories and commits with their sizes", list, options, chosen);
  auto* rm = add_action(*group, "rm", "Remove repositories or commits", remove, options, chosen);
  rm->add_option("REPO", options->repos, what)->required();
  add_removing_options(*rm, *options);
  auto* pruning =
      add_action(*group, "prune", "Remove what nothing uses: unfinished files, loose blobs", prune,
                 options, chosen);
  pruning->add_flag(
      "--unnamed", options->unnamed,
      "Also commits that no branch or tag names (a version that Python fetched is one)");
  add_removing_options(*pruning, *options);
  add_action(*group, "verify", "Hash every file; 4 when one is damaged or missing", verify, options,
             chosen)
      ->add_option("REPO", options->repos, what);
}

}  // namespace

void add_cache(CLI::App& app, Chosen& chosen) { add_group(app, /*kernels_only=*/false, chosen); }

void add_kernels_cache(CLI::App& kernels, Chosen& chosen) {
  add_group(kernels, /*kernels_only=*/true, chosen);
}

}  // namespace graft::cli

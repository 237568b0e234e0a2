#include "graft/hub/inventory.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <utility>

#include "graft/core/file_status.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/leftovers.h"
#include "graft/hub/listing.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

// Everything below `folder` that is no folder; links are not followed.
template <typename Visitor>
void visit_files(const fs::path& folder, const Visitor& visit) {
  std::error_code status;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator entry(folder, options, status), end;
       !status && entry != end; entry.increment(status)) {
    std::error_code ignored;
    if (entry->symlink_status(ignored).type() != fs::file_type::directory) {
      visit(entry->path());
    }
  }
}

// What a file takes on disk; of a link nothing.
uint64_t own_bytes(const fs::path& file) {
  std::error_code status;
  const auto size =
      fs::is_symlink(fs::symlink_status(file, status)) ? 0 : fs::file_size(file, status);
  return status ? 0 : size;
}

uint64_t bytes_below(const fs::path& folder) {
  uint64_t sum = 0;
  visit_files(folder, [&](const fs::path& file) { sum += own_bytes(file); });
  return sum;
}

// The blob that a snapshot's link names; nothing for a copy or a link elsewhere.
std::optional<std::string> blob_of(const fs::path& pointer) {
  const auto id = promised_content(pointer);
  std::error_code status;
  return id && fs::read_symlink(pointer, status).parent_path().filename() == "blobs" ? id
                                                                                     : std::nullopt;
}

std::set<std::string> blobs_of(const fs::path& snapshot) {
  std::set<std::string> ids;
  visit_files(snapshot, [&](const fs::path& file) {
    if (auto id = blob_of(file)) {
      ids.insert(std::move(*id));
    }
  });
  return ids;
}

std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    std::error_code ignored;
    if (entry.symlink_status(ignored).type() == fs::file_type::directory) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Ref -> commit.
std::map<std::string, std::string> refs_of(const fs::path& repository) {
  std::map<std::string, std::string> refs;
  visit_files(repository / "refs", [&](const fs::path& file) {
    const auto commit = read_regular_file(file, 40);
    if (commit && is_commit(*commit)) {
      refs.emplace(file.lexically_relative(repository / "refs").string(), *commit);
    }
  });
  return refs;
}

CachedCommit read_commit(const fs::path& repository, const std::string& commit) {
  CachedCommit found{commit, {}, {}, 0, 0};
  const fs::path snapshot = repository / "snapshots" / commit;
  visit_files(snapshot, [&](const fs::path& file) {
    std::error_code status;
    const auto size = fs::file_size(file, status);
    found.size_bytes += status ? 0 : size;
    ++found.num_files;
  });
  for (const auto& name : folders_in(snapshot / "build")) {
    found.variants.push_back(name);
  }
  return found;
}

// `models--org--name` -> `org/name`; nothing for a folder of another type or another maker.
std::optional<std::string> repo_id_of(const std::string& folder, RepoType type) {
  const std::string prefix = repo_folder_name(type, "");
  if (!folder.starts_with(prefix)) {
    return std::nullopt;
  }
  std::string id = folder.substr(prefix.size());
  if (const auto middle = id.find("--"); middle != std::string::npos) {
    id.replace(middle, 2, "/");
  }
  return is_repo_id(id) ? std::optional(id) : std::nullopt;
}

void add(Removal& removal, const fs::path& path) {
  std::error_code status;
  const auto type = fs::symlink_status(path, status).type();
  if (type == fs::file_type::not_found || type == fs::file_type::none) {
    return;
  }
  removal.paths.push_back(path);
  removal.freed_bytes += type == fs::file_type::directory ? bytes_below(path) : own_bytes(path);
}

// What goes with some commits, names first and blobs last.
void add_commits(Removal& removal, const CachedRepository& repository,
                 const std::set<std::string>& gone) {
  for (const auto& [ref, commit] : refs_of(repository.folder)) {
    if (gone.contains(commit)) {
      add(removal, repository.folder / "refs" / ref);
    }
  }
  std::set<std::string> used;
  std::set<std::string> unused;
  for (const auto& commit : folders_in(repository.folder / "snapshots")) {
    (gone.contains(commit) ? unused : used)
        .merge(blobs_of(repository.folder / "snapshots" / commit));
  }
  for (const auto& commit : gone) {
    add(removal, repository.folder / "snapshots" / commit);
    add(removal, repository.folder / ".no_exist" / commit);
    add(removal, repository.folder / "trees" / (commit + ".json"));
    add(removal, repository.folder / "trees" / (commit + ".graft.json"));
  }
  for (const auto& id : unused) {
    if (!used.contains(id)) {
      add(removal, repository.folder / "blobs" / id);
    }
  }
}

}  // namespace

std::vector<CachedRepository> list_cached(const fs::path& cache, RepoType type) {
  std::vector<CachedRepository> found;
  for (const auto& name : folders_in(cache)) {
    const auto repo_id = repo_id_of(name, type);
    if (!repo_id) {
      continue;
    }
    CachedRepository repository{type, *repo_id, cache / name, {}, bytes_below(cache / name)};
    const auto refs = refs_of(repository.folder);
    for (const auto& commit : folders_in(repository.folder / "snapshots")) {
      if (is_commit(commit)) {
        repository.commits.push_back(read_commit(repository.folder, commit));
      }
    }
    for (auto& commit : repository.commits) {
      for (const auto& [ref, target] : refs) {
        if (target == commit.commit) {
          commit.refs.push_back(ref);
        }
      }
    }
    found.push_back(std::move(repository));
  }
  return found;
}

Removal plan_removal(const CachedRepository& repository) {
  Removal removal;
  for (const char* name : {"refs", "snapshots"}) {
    add(removal, repository.folder / name);
  }
  add(removal, repository.folder);
  removal.freed_bytes = repository.size_bytes;
  return removal;
}

Removal plan_removal(const CachedRepository& repository, const CachedCommit& commit) {
  if (repository.commits.size() == 1) {
    return plan_removal(repository);
  }
  Removal removal;
  add_commits(removal, repository, {commit.commit});
  return removal;
}

Removal plan_prune(const CachedRepository& repository, bool unnamed_too) {
  Removal removal;
  std::set<std::string> gone;
  std::set<std::string> used;
  for (const auto& commit : repository.commits) {
    if (unnamed_too && commit.refs.empty()) {
      gone.insert(commit.commit);
    }
    used.merge(blobs_of(repository.folder / "snapshots" / commit.commit));
  }
  add_commits(removal, repository, gone);
  visit_files(repository.folder, [&](const fs::path& file) {
    const std::string name = file.filename().string();
    const fs::path parent = file.parent_path();
    const bool is_unused = parent == repository.folder / "blobs" && is_content_id(name) &&
                           !used.contains(name) && is_old(file);
    const std::string commit = name.substr(0, name.find('.'));
    const bool is_stray =
        parent == repository.folder / "trees" && is_commit(commit) &&
        std::none_of(repository.commits.begin(), repository.commits.end(),
                     [&](const CachedCommit& known) { return known.commit == commit; });
    if (is_abandoned(file) || is_unused || is_stray) {
      add(removal, file);
    }
  });
  return removal;
}

void remove(const Removal& removal) {
  for (const auto& path : removal.paths) {
    std::error_code status;
    fs::remove_all(path, status);
    if (status) {
      errno = status.value();
      throw_disk(path, 0);
    }
  }
}

Verdict verify_commit(const CachedRepository& repository, const CachedCommit& commit) {
  Verdict verdict;
  std::map<std::string, std::string> listed;
  for (const auto& file :
       read_tree(repository.folder, commit.commit).value_or(std::vector<RepoFile>{})) {
    listed.emplace(file.path, file.content_id());
  }
  const fs::path snapshot = repository.folder / "snapshots" / commit.commit;
  visit_files(snapshot, [&](const fs::path& file) {
    const std::string name = file.lexically_relative(snapshot).string();
    std::error_code status;
    const auto entry = listed.find(name);
    const auto expected =
        entry != listed.end() ? std::optional(entry->second) : promised_content(file);
    if (!fs::exists(file, status)) {
      verdict.missing.push_back(name);
    } else if (!expected) {
      verdict.unknown.push_back(name);
    } else if (!has_content(file, *expected)) {
      verdict.damaged.push_back(name);
    } else {
      ++verdict.num_right;
    }
  });
  for (auto* names : {&verdict.damaged, &verdict.unknown, &verdict.missing}) {
    std::sort(names->begin(), names->end());
  }
  return verdict;
}

}  // namespace graft::hub

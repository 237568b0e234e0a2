#include "graft/kernel/locked_kernel.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/listing.h"
#include "graft/hub/snapshot.h"
#include "graft/kernel/hub_source.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxKernels = 64;

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  return first == std::string_view::npos
             ? std::string_view()
             : text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// Walks all variants of all kernels, as `kernels lock` does: a lock serves every machine.
class Locker {
 public:
  Locker(const hub::Client& client, const TrustPolicy& trust) : client_(client), trust_(trust) {}

  void add(const KernelDependency& kernel) {
    LockedEntry entry{kernel.repo_id, kernel.version, kernel.revision, "", {}, 0};
    const std::string name = entry.name();
    if (std::find(path_.begin(), path_.end(), name) != path_.end() || path_.size() > kMaxDepth ||
        lock_.entries.size() >= kMaxKernels) {
      throw IncompatibleError(
          "kernel.resolver", "dependency-cycle",
          fmt::format(
              "kernel-depends: expected a tree of at most {} kernels, {} deep, got {} -> {}",
              kMaxKernels, kMaxDepth, fmt::join(path_, " -> "), name));
    }
    const bool is_known = std::any_of(lock_.entries.begin(), lock_.entries.end(),
                                      [&](const auto& other) { return other.name() == name; });
    if (is_known) {
      return;
    }
    path_.push_back(name);
    for (const auto& dependency : read(kernel, entry)) {
      add(dependency);
    }
    path_.pop_back();
    lock_.entries.push_back(std::move(entry));
  }

  LockFile take() { return std::move(lock_); }

 private:
  // Fills commit and hashes; returns what the variants depend on.
  std::vector<KernelDependency> read(const KernelDependency& kernel, LockedEntry& entry) {
    const auto snapshot = locate(kernel);
    entry.commit = snapshot.revision.commit;
    const auto files = client_.list_files(snapshot.type, kernel.repo_id, entry.commit, "build");
    std::vector<hub::RepoFile> metadata;
    for (const auto& variant : snapshot.variants) {
      entry.hashes.emplace(variant, variant_hash(files, variant));
      const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) {
        return file.path == fmt::format("build/{}/metadata.json", variant);
      });
      if (found != files.end()) {
        metadata.push_back(*found);
      }
    }
    const hub::FileSource source{client_, snapshot.type, kernel.repo_id, entry.commit,
                                 snapshot.build.parent_path().parent_path().parent_path()};
    hub::download_files(source, metadata);
    hub::write_kernel_listing(source.repo, entry.commit, hub::kernel_listing_of(files));
    std::vector<KernelDependency> dependencies;
    for (const auto& file : metadata) {
      const auto read =
          read_metadata(source.repo / "snapshots" / entry.commit / file.path).kernel_depends;
      dependencies.insert(dependencies.end(), read.begin(), read.end());
    }
    return dependencies;
  }

  // Commit and names of variants; the publisher is asked about before anything is listed.
  hub::KernelSnapshot locate(const KernelDependency& kernel) const {
    hub::KernelSnapshotOptions options;
    options.dry_run = true;
    options.choose = [](const std::vector<std::string>&) { return std::vector<std::string>{}; };
    bool permitted = false;
    options.permit = [&](const hub::KernelFetch& fetch) {
      require_trusted(fetch_question(fetch), TrustStage::kFetch, trust_);
      permitted = true;
    };
    auto snapshot = hub::snapshot_kernel(client_, {kernel.repo_id, kernel.ref()}, options);
    if (!permitted) {  // everything was in the cache
      options.permit({client_, snapshot.repo_id, snapshot.type, snapshot.revision});
    }
    return snapshot;
  }

  const hub::Client& client_;
  const TrustPolicy& trust_;
  std::vector<std::string> path_;
  LockFile lock_;
};

// What a variant's folder in a snapshot holds: a file whose bytes are not those of its id has none.
std::vector<hub::RepoFile> files_on_disk(const std::string& variant, const fs::path& folder) {
  const fs::path snapshot = folder.parent_path().parent_path();
  std::map<std::string, std::string> listed;  // for copies, where there are no links to blobs
  if (auto listing = hub::read_kernel_listing(snapshot.parent_path().parent_path(),
                                              snapshot.filename().string())) {
    for (const auto& file : listing->files[variant]) {
      listed[file.path] = file.content_id();
    }
  }
  std::vector<hub::RepoFile> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_directory() && !entry.is_symlink()) {
      continue;
    }
    hub::RepoFile file;
    file.path = fmt::format("build/{}/{}", variant,
                            entry.path().lexically_relative(folder).generic_string());
    const std::string id = hub::promised_content(entry.path()).value_or(listed[file.path]);
    if (hub::has_content_remembered(entry.path(), id)) {
      (id.size() == 64 ? file.sha256 : file.git_oid) = id;
    }
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

LockFile make_lock(const hub::Client& client, const std::vector<KernelDependency>& kernels,
                   const TrustPolicy& trust) {
  Locker locker(client, trust);
  for (const auto& kernel : kernels) {
    locker.add(kernel);
  }
  return locker.take();
}

std::string content_violation(const LockedEntry& entry, const std::string& variant,
                              const fs::path& folder) {
  const auto locked = entry.hashes.find(variant);
  if (locked == entry.hashes.end()) {
    return fmt::format("`{}` variant `{}`: expected a hash in the lock, got none for it",
                       entry.name(), variant);
  }
  const auto found = variant_hash(files_on_disk(variant, folder), variant);
  return found == locked->second
             ? ""
             : fmt::format(
                   "`{}` variant `{}`: expected content sha256-{} as the lock says, got "
                   "sha256-{} in `{}`",
                   entry.name(), variant, locked->second, found, folder.string());
}

std::vector<ResolvedKernel> resolve_locked(const std::string& repo_id, const LockFile& lock,
                                           const KernelOptions& options) {
  ResolveRequest request = kernel_request(repo_id, options, /*is_locked=*/true);
  std::map<std::string, const LockedEntry*> used;  // by `repo@commit`
  const Pin pin = [&](const LayerReference& wanted) -> LayerReference {
    for (const LockedEntry& entry : lock.entries) {
      const bool is_top = wanted.ref.empty();
      const std::string ref = entry.version ? fmt::format("v{}", *entry.version) : entry.revision;
      if (entry.repo_id == wanted.repository && (is_top || ref == wanted.ref || ref.empty())) {
        used[entry.repo_id + "@" + entry.commit] = &entry;
        return {entry.repo_id, entry.commit, wanted.layer};
      }
    }
    throw NotFound("kernel.lock", "not-locked",
                   fmt::format("`{}`: expected `{}{}{}`, got only {} kernels without it",
                               lock.path.string(), wanted.repository, wanted.ref.empty() ? "" : "@",
                               wanted.ref, lock.entries.size()),
                   "write the lock anew with `graft kernels lock`");
  };
  const PackageSources hub = {std::make_shared<HubSource>(
      options.local_files_only ? HubSource::Network::kNever : HubSource::Network::kAsNeeded)};
  auto tree = resolve_tree(request, hub, pin);
  for (const auto& [reference, resolution, unused] : tree) {
    const auto found = used.find(resolution.repository + "@" + resolution.commit);
    const bool is_here = !options.dry_run || resolution.bytes_fetched == 0;
    if (found == used.end() || found->second->hashes.empty() || !is_here) {
      continue;
    }
    const LockedEntry& entry = *found->second;
    const auto violation = content_violation(entry, resolution.variant, resolution.folder);
    if (!violation.empty() && !entry.hashes.contains(resolution.variant)) {
      throw IncompatibleError("kernel.lock", "variant", violation);
    }
    if (!violation.empty()) {
      throw IntegrityError("kernel.lock", "content", violation,
                           "remove the snapshot and fetch it again, or write the lock anew");
    }
  }
  return tree;
}

std::vector<KernelDependency> read_pyproject(const fs::path& file) {
  std::ifstream in(file);
  if (!in) {
    throw NotFound("kernel.lock", "pyproject",
                   fmt::format("`{}`: expected a file, got none", file.string()));
  }
  std::vector<KernelDependency> kernels;
  bool in_table = false;
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const auto row = trimmed(line);
    if (row.starts_with('[')) {
      in_table = row == "[tool.kernels.dependencies]";
      continue;
    }
    if (!in_table || row.empty() || row[0] == '#') {
      continue;
    }
    const auto close = row[0] == '"' ? row.find('"', 1) : std::string_view::npos;
    const auto equals = close == std::string_view::npos ? close : row.find('=', close);
    KernelDependency kernel;
    int64_t version = -1;
    if (equals != std::string_view::npos) {
      kernel.repo_id = row.substr(1, close - 1);
      const auto value = trimmed(row.substr(equals + 1, row.find('#') - equals - 1));
      const auto [end, status] =
          std::from_chars(value.data(), value.data() + value.size(), version);
      version = status == std::errc() && end == value.data() + value.size() ? version : -1;
    }
    if (version < 0 || !hub::is_repo_id(kernel.repo_id) ||
        kernel.repo_id.find('/') == std::string::npos) {
      throw FormatError("kernel.lock", "pyproject",
                        fmt::format("`{}` line {}: expected `\"org/name\" = <version>`, got `{}`",
                                    file.string(), number, row.substr(0, 200)));
    }
    kernel.version = version;
    kernels.push_back(std::move(kernel));
  }
  if (kernels.empty()) {
    throw FormatError("kernel.lock", "pyproject",
                      fmt::format("`{}` line {}: expected kernels under "
                                  "[tool.kernels.dependencies], got none",
                                  file.string(), number));
  }
  return kernels;
}

}  // namespace graft::kernel

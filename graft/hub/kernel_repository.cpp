#include "graft/hub/kernel_repository.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/log.h"
#include "graft/core/temporary_folder.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr auto kLockTimeout = std::chrono::minutes(10);

// Bytecode is never part of a build; what carries it was not made by the kernel builder.
bool is_bytecode(const RepoFile& file) {
  return file.path.ends_with(".pyc") || file.path.find("/__pycache__/") != std::string::npos;
}

// A folder for one file that is only looked at.
class LookedAtFolder : public TemporaryFolder {
 public:
  LookedAtFolder()
      : TemporaryFolder("graft-dry-run", [](const std::string& name) { throw_disk(name, 0); }) {}
};

fs::path cache_of(RepoType type, const KernelSnapshotOptions& options) {
  if (type == RepoType::kKernel) {
    return options.kernels_cache.empty() ? kernels_cache_folder() : options.kernels_cache;
  }
  return options.models_cache.empty() ? cache_folder() : options.models_cache;
}

std::vector<RepoFile> files_of(const std::string& variant, const KernelListing& listing) {
  const auto found = listing.files.find(variant);
  std::vector<RepoFile> files =
      found == listing.files.end() ? std::vector<RepoFile>{} : found->second;
  std::erase_if(files, is_bytecode);
  return files;
}

const RepoFile& metadata_of(const std::vector<RepoFile>& files, const FileSource& source,
                            const std::string& variant) {
  const auto found = std::find_if(files.begin(), files.end(), [&](const RepoFile& file) {
    return file.path == "build/" + variant + "/metadata.json";
  });
  if (found == files.end()) {
    throw NotFound("hub.snapshot", "metadata",
                   fmt::format("`{}`@`{}`: expected metadata.json in build/{}, got none",
                               source.repo_id, source.commit, variant),
                   "packages older than this file cannot be loaded");
  }
  return *found;
}

// Folders that are there, sorted.
std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    if (entry.is_directory(status)) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

KernelRepository::KernelRepository(const Client* client, RepoType type,
                                   const KernelReference& reference,
                                   const KernelSnapshotOptions& options)
    : client_(client),
      type_(type),
      reference_(reference),
      options_(options),
      cache_(cache_of(type, options)),
      repo_(cache_ / repo_folder_name(type, reference.repo_id)) {}

bool KernelRepository::is_cached() const {
  std::error_code status;
  return fs::is_directory(repo_ / "snapshots", status);
}

KernelSnapshot KernelRepository::from_hub() {
  std::optional<FileLock> one_asks;
  if (!options_.dry_run) {
    one_asks.emplace(
        cache_ / ".locks" / repo_.filename() / "graft-resolve.lock", kLockTimeout,
        [&] { log()->info("waiting for another process that resolves `{}`", reference_.repo_id); });
  }
  KernelSnapshot snapshot;
  snapshot.revision = resolve_revision(*client_, type_, reference_.repo_id, reference_.ref);
  const Revision& revision = snapshot.revision;
  if (!revision.ref.empty() && options_.follow) {
    options_.follow({*client_, reference_.repo_id, type_, revision});
  }
  KernelListing listing = variants(revision);
  fill(snapshot, listing);
  for (const std::string& variant : chosen(listing.variants)) {
    if (bring(snapshot, variant, listing)) {
      break;
    }
  }
  if (!revision.ref.empty() && !snapshot.variant.empty() && !options_.dry_run) {
    write_ref(repo_, revision.ref, revision.commit);
  }
  note_default(revision);
  if (revision.newest) {
    log()->info("`{}`: {} is used, v{} is there", reference_.repo_id, revision.ref,
                *revision.newest);
  }
  return snapshot;
}

std::optional<KernelSnapshot> KernelRepository::from_cache() const {
  const auto revision = find_revision(cache_, type_, reference_.repo_id, reference_.ref);
  if (!revision || !fs::is_directory(snapshot_folder(revision->commit) / "build")) {
    return std::nullopt;
  }
  KernelSnapshot snapshot;
  snapshot.revision = *revision;
  snapshot.from_cache = true;
  note_default(snapshot.revision);
  const KernelListing listing =
      read_kernel_listing(repo_, revision->commit).value_or(KernelListing{});
  fill(snapshot, listing);
  const auto here = folders_in(snapshot.build);
  snapshot.variants = snapshot.variants.empty() ? here : snapshot.variants;
  for (const std::string& variant : chosen(here)) {
    if (is_whole(snapshot, variant, listing) && accepts(snapshot.build / variant)) {
      snapshot.variant = variant;
      snapshot.files = files_of(variant, listing);
      break;
    }
  }
  return snapshot;
}

std::optional<Redirect> KernelRepository::redirect_on_hub() {
  const auto commit = client_->resolve_commit(type_, reference_.repo_id, "main");
  require_permit({commit, "main", std::nullopt});
  if (auto known = read_redirect(snapshot_folder(commit))) {
    return known;
  }
  const auto files = client_->list_folder(type_, reference_.repo_id, commit);
  const auto status = std::find_if(files.begin(), files.end(),
                                   [](const RepoFile& file) { return file.path == kStatusFile; });
  if (status == files.end()) {
    return std::nullopt;
  }
  FileSource source = source_at(commit);
  if (options_.dry_run) {
    const LookedAtFolder folder;
    source.repo = folder.path() / repo_.filename();
    download_files(source, {*status});
    return read_redirect(source.repo / "snapshots" / commit);
  }
  download_files(source, {*status});
  write_ref(repo_, "main", commit);
  return read_redirect(snapshot_folder(commit));
}

std::optional<Redirect> KernelRepository::redirect_in_cache() const {
  const auto snapshot = find_snapshot(cache_, type_, reference_.repo_id, "main");
  return snapshot ? read_redirect(snapshot->folder) : std::nullopt;
}

fs::path KernelRepository::snapshot_folder(const std::string& commit) const {
  return repo_ / "snapshots" / commit;
}

FileSource KernelRepository::source_at(const std::string& commit) const {
  return {*client_, type_, reference_.repo_id, commit, repo_};
}

// A version that nobody named and that is not the default one is said, once.
void KernelRepository::note_default(const Revision& revision) const {
  static std::mutex mutex;
  static std::set<std::string> said;
  if (!reference_.ref.empty() || version_branch(revision.ref).value_or(1) == 1) {
    return;
  }
  const std::lock_guard lock(mutex);
  if (said.insert(reference_.repo_id + revision.ref).second) {
    log()->warn("`{}`: there is no v1, {} is used", reference_.repo_id, revision.ref);
  }
}

void KernelRepository::fill(KernelSnapshot& snapshot, const KernelListing& listing) const {
  snapshot.repo_id = reference_.repo_id;
  snapshot.type = type_;
  snapshot.build = snapshot_folder(snapshot.revision.commit) / "build";
  snapshot.variants = listing.variants;
}

std::vector<std::string> KernelRepository::chosen(const std::vector<std::string>& names) const {
  return options_.choose ? options_.choose(names) : names;
}

bool KernelRepository::accepts(const fs::path& folder) const {
  return !options_.accept || options_.accept(folder);
}

void KernelRepository::require_permit(const Revision& revision) {
  if (!permitted_ && options_.permit) {
    options_.permit({*client_, reference_.repo_id, type_, revision});
  }
  permitted_ = true;
}

void KernelRepository::keep(const std::string& commit, const KernelListing& listing) const {
  if (!options_.dry_run) {
    write_kernel_listing(repo_, commit, listing);
  }
}

// The names of build/: from the cache, for a commit never changes, else from the Hub. A page mostly
// holds the files of all variants too; where it does not, each is asked for by itself.
KernelListing KernelRepository::variants(const Revision& revision) {
  if (auto known = read_kernel_listing(repo_, revision.commit)) {
    return *known;
  }
  require_permit(revision);
  KernelListing listing;
  if (const auto files =
          client_->list_few_files(type_, reference_.repo_id, revision.commit, "build")) {
    listing = kernel_listing_of(*files);
  } else {
    listing.variants = client_->list_folders(type_, reference_.repo_id, revision.commit, "build");
  }
  std::sort(listing.variants.begin(), listing.variants.end());
  keep(revision.commit, listing);
  return listing;
}

bool KernelRepository::is_here(const FileSource& source, const RepoFile& file) const {
  std::error_code status;
  return fs::exists(source.repo / "snapshots" / source.commit / file.path, status) ||
         fs::exists(source.repo / "blobs" / file.content_id(), status);
}

// A variant's metadata.json, then the rest if the caller agrees.
bool KernelRepository::bring(KernelSnapshot& snapshot, const std::string& variant,
                             KernelListing& listing) {
  const FileSource source = source_at(snapshot.revision.commit);
  if (!listing.files.contains(variant)) {
    require_permit(snapshot.revision);
    listing.files[variant] =
        client_->list_files(type_, source.repo_id, source.commit, "build/" + variant);
    keep(source.commit, listing);
  }
  const std::vector<RepoFile> files = files_of(variant, listing);
  uint64_t missing_bytes = 0;
  for (const RepoFile& file : files) {
    missing_bytes += is_here(source, file) ? 0 : file.size_bytes;
  }
  if (missing_bytes > 0) {
    require_permit(snapshot.revision);
  }
  const RepoFile& metadata = metadata_of(files, source, variant);
  if (options_.dry_run) {
    const bool accepted = fs::exists(snapshot.build / variant / "metadata.json")
                              ? accepts(snapshot.build / variant)
                              : accepts_unfetched(source, metadata, variant);
    if (!accepted) {
      return false;
    }
  } else {
    download_files(source, {metadata});
    if (!accepts(snapshot.build / variant)) {
      return false;
    }
    download_files(source, files, options_.progress);
  }
  snapshot.variant = variant;
  snapshot.files = files;
  snapshot.bytes_fetched = missing_bytes;
  return true;
}

// Shows the caller a metadata.json that never enters the cache.
bool KernelRepository::accepts_unfetched(const FileSource& source, const RepoFile& metadata,
                                         const std::string& variant) const {
  const LookedAtFolder folder;
  FileSource elsewhere = source;
  elsewhere.repo = folder.path() / repo_.filename();
  download_files(elsewhere, {metadata});
  return accepts(elsewhere.repo / "snapshots" / source.commit / "build" / variant);
}

// All listed files are there; without a listing, those that are there are right, and they are more
// than the metadata.json that `kernels lock` brings of every variant.
bool KernelRepository::is_whole(const KernelSnapshot& snapshot, const std::string& variant,
                                const KernelListing& listing) const {
  std::error_code status;
  const fs::path folder = snapshot.build / variant;
  for (const RepoFile& file : files_of(variant, listing)) {
    const auto pointer = snapshot_folder(snapshot.revision.commit) / file.path;
    if (!fs::exists(pointer, status)) {
      return false;
    }
    if (!has_content_remembered(pointer, file.content_id())) {
      throw_damaged(pointer);
    }
  }
  size_t num_files = files_of(variant, listing).size();
  for (const auto& entry : fs::recursive_directory_iterator(folder, status)) {
    ++num_files;
    const auto promised = promised_content(entry.path());
    if (promised && !has_content_remembered(entry.path(), *promised)) {
      throw_damaged(entry.path());
    }
  }
  return num_files > 1 && fs::exists(folder / "metadata.json", status);
}

void KernelRepository::throw_damaged(const fs::path& file) const {
  throw IntegrityError("hub.cache", "damaged",
                       fmt::format("`{}`: `{}`: expected the bytes that its blob is named after, "
                                   "got others",
                                   reference_.repo_id, file.string()),
                       "go online once: the file is then fetched anew");
}

}  // namespace graft::hub

#include "graft/hub/snapshot.h"

#include <algorithm>
#include <exception>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/log.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/environment.h"
#include "graft/hub/listing.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr auto kLockTimeout = std::chrono::minutes(10);

// Bytecode is never part of a build; what carries it was not made by the kernel builder.
bool is_bytecode(const RepoFile& file) {
  return file.path.ends_with(".pyc") || file.path.find("/__pycache__/") != std::string::npos;
}

void require_trust(const Client& client, const std::string& repo_id,
                   const KernelSnapshotOptions& options) {
  const auto& listed = options.trusted_repos;
  if (options.trust_all || std::find(listed.begin(), listed.end(), repo_id) != listed.end()) {
    return;
  }
  const std::string organisation = repo_id.substr(0, repo_id.find('/'));
  if (!client.is_trusted_publisher(organisation)) {
    throw IntegrityError(
        "hub.trust", "publisher",
        fmt::format("`{}`: expected a publisher that the Hub trusts with kernels, got `{}`",
                    repo_id, organisation),
        "allow this repository by name if you trust its code");
  }
}

// One type of repository and its folder in the cache.
class KernelRepository {
 public:
  KernelRepository(const Client& client, RepoType type, const KernelReference& reference,
                   const KernelSnapshotOptions& options)
      : type_(type),
        reference_(reference),
        options_(options),
        cache_(cache_of(type, options)),
        source_{client, type, reference.repo_id, "",
                cache_ / repo_folder_name(type, reference.repo_id)} {}

  KernelSnapshot from_hub() {
    const FileLock one_asks(
        cache_ / ".locks" / source_.repo.filename() / "graft-resolve.lock", kLockTimeout,
        [&] { log()->info("waiting for another process that resolves `{}`", source_.repo_id); });
    KernelSnapshot snapshot;
    snapshot.revision = resolve_revision(source_.client, type_, source_.repo_id, reference_.ref);
    source_.commit = snapshot.revision.commit;
    KernelListing listing = variants();
    fill(snapshot, listing);
    for (const std::string& variant : chosen(listing.variants)) {
      if (bring(snapshot.build / variant, variant, listing)) {
        snapshot.variant = variant;
        break;
      }
    }
    if (!snapshot.revision.ref.empty() && !snapshot.variant.empty()) {
      write_ref(source_.repo, snapshot.revision.ref, source_.commit);
    }
    if (snapshot.revision.newest) {
      log()->warn("`{}`: {} is used, v{} is there", source_.repo_id, snapshot.revision.ref,
                  *snapshot.revision.newest);
    }
    return snapshot;
  }

  // Nothing where the cache holds no such snapshot.
  std::optional<KernelSnapshot> from_cache() {
    const auto revision = find_revision(cache_, type_, source_.repo_id, reference_.ref);
    if (!revision || !fs::is_directory(snapshot_folder(revision->commit) / "build")) {
      return std::nullopt;
    }
    KernelSnapshot snapshot;
    snapshot.revision = *revision;
    snapshot.from_cache = true;
    source_.commit = revision->commit;
    KernelListing listing =
        read_kernel_listing(source_.repo, source_.commit).value_or(KernelListing{});
    fill(snapshot, listing);
    std::vector<std::string> here;
    std::error_code status;
    for (const auto& entry : fs::directory_iterator(snapshot.build, status)) {
      if (entry.is_directory(status)) {
        here.push_back(entry.path().filename().string());
      }
    }
    std::sort(here.begin(), here.end());
    snapshot.variants = snapshot.variants.empty() ? here : snapshot.variants;
    for (const std::string& variant : chosen(here)) {
      if (is_whole(snapshot.build / variant, variant, listing) &&
          accepts(snapshot.build / variant)) {
        snapshot.variant = variant;
        return snapshot;
      }
    }
    return snapshot;
  }

 private:
  static fs::path cache_of(RepoType type, const KernelSnapshotOptions& options) {
    if (type == RepoType::kKernel) {
      return options.kernels_cache.empty() ? kernels_cache_folder() : options.kernels_cache;
    }
    return options.models_cache.empty() ? cache_folder() : options.models_cache;
  }

  fs::path snapshot_folder(const std::string& commit) const {
    return source_.repo / "snapshots" / commit;
  }

  void fill(KernelSnapshot& snapshot, const KernelListing& listing) const {
    snapshot.type = type_;
    snapshot.build = snapshot_folder(source_.commit) / "build";
    snapshot.variants = listing.variants;
  }

  std::vector<std::string> chosen(const std::vector<std::string>& names) const {
    return options_.choose ? options_.choose(names) : names;
  }

  bool accepts(const fs::path& folder) const { return !options_.accept || options_.accept(folder); }

  // The names of build/: from the cache, for a commit never changes, else from the Hub.
  KernelListing variants() const {
    if (auto known = read_kernel_listing(source_.repo, source_.commit)) {
      return *known;
    }
    KernelListing listing;
    listing.variants = source_.client.list_folders(type_, source_.repo_id, source_.commit, "build");
    std::sort(listing.variants.begin(), listing.variants.end());
    write_kernel_listing(source_.repo, source_.commit, listing);
    return listing;
  }

  // A variant's metadata.json, then the rest if the caller agrees.
  bool bring(const fs::path& folder, const std::string& variant, KernelListing& listing) const {
    if (!listing.files.contains(variant)) {
      listing.files[variant] =
          source_.client.list_files(type_, source_.repo_id, source_.commit, "build/" + variant);
      write_kernel_listing(source_.repo, source_.commit, listing);
    }
    std::vector<RepoFile> files = listing.files[variant];
    std::erase_if(files, is_bytecode);
    const auto metadata = std::find_if(files.begin(), files.end(), [&](const RepoFile& file) {
      return file.path == "build/" + variant + "/metadata.json";
    });
    if (metadata == files.end()) {
      throw NotFound("hub.snapshot", "metadata",
                     fmt::format("`{}`@`{}`: expected metadata.json in build/{}, got none",
                                 source_.repo_id, source_.commit, variant),
                     "packages older than this file cannot be loaded");
    }
    download_files(source_, {*metadata});
    if (!accepts(folder)) {
      return false;
    }
    download_files(source_, files, options_.progress);
    return true;
  }

  // All listed files are there; without a listing, those that are there are right.
  bool is_whole(const fs::path& folder, const std::string& variant,
                const KernelListing& listing) const {
    std::error_code status;
    if (const auto files = listing.files.find(variant); files != listing.files.end()) {
      for (const RepoFile& file : files->second) {
        const auto pointer = snapshot_folder(source_.commit) / file.path;
        if (!is_bytecode(file) && !fs::exists(pointer, status)) {
          return false;
        }
        if (!is_bytecode(file) && !has_content(pointer, file.content_id())) {
          throw_damaged(pointer);
        }
      }
    }
    for (const auto& entry : fs::recursive_directory_iterator(folder, status)) {
      const auto promised = promised_content(entry.path());
      if (promised && !has_content(entry.path(), *promised)) {
        throw_damaged(entry.path());
      }
    }
    return fs::exists(folder / "metadata.json", status);
  }

  [[noreturn]] void throw_damaged(const fs::path& file) const {
    throw IntegrityError("hub.cache", "damaged",
                         fmt::format("`{}`: `{}`: expected the bytes that its blob is named "
                                     "after, got others",
                                     source_.repo_id, file.string()),
                         "go online once: the file is then fetched anew");
  }

  RepoType type_;
  const KernelReference& reference_;
  const KernelSnapshotOptions& options_;
  fs::path cache_;
  FileSource source_;
};

constexpr RepoType kTypes[] = {RepoType::kKernel, RepoType::kModel};

std::optional<KernelSnapshot> from_any_cache(const Client& client, const KernelReference& reference,
                                             const KernelSnapshotOptions& options) {
  for (const RepoType type : kTypes) {
    if (auto snapshot = KernelRepository(client, type, reference, options).from_cache()) {
      return snapshot;
    }
  }
  return std::nullopt;
}

// An answer that leaves the other type of repository possible.
bool may_be_elsewhere(const NotFound& error) {
  return error.code() != "hub.client.gated" && error.code() != "hub.client.forbidden";
}

}  // namespace

KernelSnapshot snapshot_kernel(const Client& client, const KernelReference& reference,
                               const KernelSnapshotOptions& options) {
  find_snapshot("", RepoType::kKernel, reference.repo_id);  // refuses what is no repository's name
  if (offline()) {
    if (auto snapshot = from_any_cache(client, reference, options)) {
      return *snapshot;
    }
    throw NotFound("hub.snapshot", "not-cached",
                   fmt::format("`{}`@`{}`: expected it in the cache, got nothing, and "
                               "HF_HUB_OFFLINE is set",
                               reference.repo_id, reference.ref.empty() ? "v1" : reference.ref),
                   "fetch it once while online");
  }
  try {
    require_trust(client, reference.repo_id, options);
    std::exception_ptr first;
    for (const RepoType type : kTypes) {
      try {
        return KernelRepository(client, type, reference, options).from_hub();
      } catch (const NotFound& error) {
        if (!may_be_elsewhere(error) || type == RepoType::kModel) {
          std::rethrow_exception(first && may_be_elsewhere(error) ? first
                                                                  : std::current_exception());
        }
        first = std::current_exception();
      }
    }
    throw InternalError("hub.snapshot", "types", "no type of repository was tried");
  } catch (const NetworkError& error) {
    auto snapshot = from_any_cache(client, reference, options);
    if (!snapshot || snapshot->variant.empty()) {
      throw;
    }
    log()->warn("{}; using what the cache holds of `{}`", error.what(), reference.repo_id);
    return *snapshot;
  }
}

}  // namespace graft::hub

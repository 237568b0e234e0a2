// A kernel repository of one type, on the Hub and in the cache. Internal to the room.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "graft/hub/listing.h"
#include "graft/hub/redirect.h"
#include "graft/hub/snapshot.h"

namespace graft::hub {

// One type of repository and its folder in the cache.
class KernelRepository {
 public:
  // No client: the cache alone. The arguments outlive the object.
  KernelRepository(const Client* client, RepoType type, const KernelReference& reference,
                   const KernelSnapshotOptions& options);

  // Whether the cache has anything of it.
  bool is_cached() const;

  KernelSnapshot from_hub();
  // Nothing where the cache holds no such snapshot.
  std::optional<KernelSnapshot> from_cache() const;

  // Where the repository has moved to, by its branch `main`.
  std::optional<Redirect> redirect_on_hub();
  std::optional<Redirect> redirect_in_cache() const;

 private:
  std::filesystem::path snapshot_folder(const std::string& commit) const;
  void note_default(const Revision& revision) const;
  void fill(KernelSnapshot& snapshot, const KernelListing& listing) const;
  std::vector<std::string> chosen(const std::vector<std::string>& names) const;
  bool accepts(const std::filesystem::path& folder) const;
  void require_permit(const Revision& revision);
  void keep(const std::string& commit, const KernelListing& listing) const;
  KernelListing variants(const Revision& revision);
  bool is_here(const FileSource& source, const RepoFile& file) const;
  bool bring(KernelSnapshot& snapshot, const std::string& variant, KernelListing& listing);
  bool accepts_unfetched(const FileSource& source, const RepoFile& metadata,
                         const std::string& variant) const;
  bool is_whole(const KernelSnapshot& snapshot, const std::string& variant,
                const KernelListing& listing) const;
  [[noreturn]] void throw_damaged(const std::filesystem::path& file) const;
  FileSource source_at(const std::string& commit) const;

  const Client* client_;
  RepoType type_;
  const KernelReference& reference_;
  const KernelSnapshotOptions& options_;
  std::filesystem::path cache_;
  std::filesystem::path repo_;
  bool permitted_ = false;
};

}  // namespace graft::hub

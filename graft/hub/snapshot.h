// One build variant of a kernel repository, brought into the cache: what a kernel's load needs and
// nothing more.
//
//   commit -> is it all here? -> may it be fetched? -> names of build/ -> the caller chooses ->
//   metadata.json of the best -> the caller agrees -> the files of that variant
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "graft/hub/download.h"
#include "graft/hub/revision.h"

namespace graft::hub {

struct KernelReference {
  std::string repo_id;  // `org/name`
  std::string ref;      // as revision.h reads it
};

// What is about to be fetched.
struct KernelFetch {
  const Client& client;
  const std::string& repo_id;
  RepoType type;
  const Revision& revision;
};

struct KernelSnapshotOptions {
  std::filesystem::path kernels_cache;  // empty: kernels_cache_folder()
  std::filesystem::path models_cache;   // empty: cache_folder(); older repositories of type model
  // Names of build variants in, those that may run here out, best first. Absent: all, as they come.
  std::function<std::vector<std::string>(const std::vector<std::string>&)> choose;
  // Looks at a chosen variant's folder (its name is the variant's), in which metadata.json lies and
  // maybe nothing else; false passes on to the next. Absent: the first is taken.
  std::function<bool(const std::filesystem::path& folder)> accept;
  // Whether this repository may be fetched from: asked once, before anything but refs is requested,
  // and only where something is missing. Throws to refuse. Absent: everything may.
  std::function<void(const KernelFetch&)> permit;
  // Whether a branch or tag may be followed to the commit at which the Hub has it now: asked once for
  // each name that is resolved there, before anything else is requested. Throws to refuse. Absent:
  // wherever it leads.
  std::function<void(const KernelFetch&)> follow;
  Progress progress;
  // Nothing is written: the answer says what would be fetched. Only metadata.json is read, into a
  // folder that goes away.
  bool dry_run = false;
};

struct KernelSnapshot {
  std::string repo_id;                // that it is of: another than was asked for after a redirect
  std::filesystem::path build;        // the snapshot's build/
  std::string variant;                // the one that is complete below it; empty: none fits
  std::vector<std::string> variants;  // all that the commit has, whether they are here or not
  std::vector<RepoFile> files;        // of the variant; empty where no listing is known
  RepoType type = RepoType::kKernel;
  Revision revision;
  bool from_cache = false;     // no Hub was asked, or it did not answer
  uint64_t bytes_fetched = 0;  // that were not here before; of a dry run: that would be fetched
};

// Brings the best variant of a kernel repository into the cache: of the type kernel, else of the
// older type model (the other way round where only that is in the cache).
//
// Requests: none when a commit is named and its variant is here; one when a branch, a version or a
// specifier is; at most five for a cold variant of two files, the publisher's included (the storage
// that a large file redirects to is one more).
// Without a network the cache answers, by version too. Every file of the variant is hashed before
// this returns: damage is fetched anew with a warning, or is an error offline. Among processes that
// start at once one asks the Hub and the others take its answer.
// A repository without build variants that has moved (redirect.h) is followed once.
// Throws   NotFound as Client and revision.h; IntegrityError `hub.cache.damaged`,
//          `hub.download.digest`; FormatError `hub.redirect.*`;
//          NetworkError when neither Hub nor cache answers; Error
//          `hub.download.disk`; what `follow`, `permit` and `accept` throw.
// Blocking, network, disk.
KernelSnapshot snapshot_kernel(const Client& client, const KernelReference& reference,
                               const KernelSnapshotOptions& options);

// The same from the cache alone: nothing where it has no such snapshot.
// Throws   InvalidArgument for a name that cannot be one; IntegrityError `hub.cache.damaged`.
std::optional<KernelSnapshot> find_kernel(const KernelReference& reference,
                                          const KernelSnapshotOptions& options);

}  // namespace graft::hub

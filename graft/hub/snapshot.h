// One build variant of a kernel repository, brought into the cache: what a kernel's load needs and
// nothing more.
//
//   publisher trusted? -> commit -> names of build/ -> the caller chooses -> metadata.json of the
//   best -> the caller agrees -> the files of that variant
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "graft/hub/download.h"
#include "graft/hub/revision.h"

namespace graft::hub {

struct KernelReference {
  std::string repo_id;  // `org/name`
  std::string ref;      // as revision.h reads it
};

struct KernelSnapshotOptions {
  std::filesystem::path kernels_cache;  // empty: kernels_cache_folder()
  std::filesystem::path models_cache;   // empty: cache_folder(); older repositories of type model
  // Names of build variants in, those that may run here out, best first.
  std::function<std::vector<std::string>(const std::vector<std::string>&)> choose;
  // Looks at a chosen variant's folder, in which metadata.json lies and maybe nothing else; false
  // passes on to the next. Absent: the first is taken.
  std::function<bool(const std::filesystem::path& folder)> accept;
  // Every publisher is trusted; else the Hub's word on the organisation counts, and these.
  bool trust_all = false;
  std::vector<std::string> trusted_repos;
  Progress progress;
};

struct KernelSnapshot {
  std::filesystem::path build;        // the snapshot's build/
  std::string variant;                // the one that is complete below it; empty: none fits
  std::vector<std::string> variants;  // all that the commit has, whether they are here or not
  RepoType type = RepoType::kKernel;
  Revision revision;
  bool from_cache = false;  // no Hub was asked, or it did not answer
};

// Brings the best variant of a kernel repository into the cache: of the type kernel, else of the
// older type model.
//
// Without a network the cache answers, by version too. Every file of the variant is hashed before
// this returns: damage is fetched anew with a warning, or is an error offline. Among processes that
// start at once one asks the Hub and the others take its answer.
// Throws   NotFound as Client and revision.h; IntegrityError `hub.trust.publisher`,
//          `hub.cache.damaged`, `hub.download.digest`; NetworkError when neither Hub nor cache
//          answers; Error `hub.download.disk`.
// Blocking, network, disk.
KernelSnapshot snapshot_kernel(const Client& client, const KernelReference& reference,
                               const KernelSnapshotOptions& options);

}  // namespace graft::hub

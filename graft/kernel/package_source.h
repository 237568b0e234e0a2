// Places where kernel packages are looked for, in order. A place answers with one build variant
// that may be loaded, or says where it looked in vain and why a variant does not fit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "graft/hub/download.h"
#include "graft/kernel/metadata.h"
#include "graft/kernel/reference.h"
#include "graft/kernel/trust.h"
#include "graft/kernel/variant.h"

namespace graft::kernel {

struct ResolveRequest {
  LayerReference reference;
  System system;
  int capability = 0;  // of the CUDA device, major * 10 + minor
  TrustPolicy trust = {};
  bool check_arch = true;  // hold the device's compute capability against metadata.json
  // Nothing is fetched into the cache: a resolution may name a folder that is not there yet, and
  // bytes_fetched are those that would be.
  bool dry_run = false;
  bool allow_rollback = false;  // trust/rollback.h
  hub::Progress progress = {};  // of what is fetched
};

struct Resolution {
  std::filesystem::path folder;  // build/<variant>
  std::string variant;
  Metadata metadata;
  std::string source;      // `LOCAL_KERNELS`, `path`, `embedded hub`, `cache`, `Hub`
  std::string repository;  // that answered: another than was asked for after a redirect
  std::string commit;      // of a snapshot of the Hub, else empty
  std::string ref;         // branch, version or tag that the commit came from; empty for a commit
  uint64_t bytes_fetched = 0;  // that were not on this machine before
  bool is_signed = false;      // a Sigstore bundle comes with it; nobody has verified it
  std::vector<std::pair<std::string, std::string>> refused;  // variants passed over, with reasons
};

// What came of looking so far.
struct Attempt {
  std::vector<std::string> looked;                           // places without the package
  std::vector<std::pair<std::string, std::string>> refused;  // variants, with reasons
  bool only_architecture = false;  // a variant fits but for the device's compute capability
  bool settled = false;            // no later place may answer
};

// Sorts the variants of one package by what this system accepts, and reads the metadata.json of
// those that it does.
class VariantJudge {
 public:
  // version  that metadata.json must name; absent: any
  VariantJudge(const ResolveRequest& request, std::optional<int64_t> version, Attempt& attempt);

  // Names that this system accepts, best first; every other gets its reason in the attempt.
  std::vector<std::string> choose(const std::vector<std::string>& names);

  // Whether the metadata.json in a folder that is named after its variant agrees with that name,
  // the version and the device; the reason goes into the attempt. Throws as read_metadata.
  bool accept(const std::filesystem::path& folder);

  // Of the folder that was accepted last.
  const Metadata& metadata() const { return metadata_; }

 private:
  const ResolveRequest& request_;
  std::optional<int64_t> version_;
  Attempt& attempt_;
  Metadata metadata_;
};

class PackageSource {
 public:
  virtual ~PackageSource() = default;
  // Throws what the place cannot answer (a network source: NetworkError, IntegrityError).
  virtual std::optional<Resolution> resolve(const ResolveRequest& request,
                                            Attempt& attempt) const = 0;
};

using PackageSources = std::vector<std::shared_ptr<const PackageSource>>;

// LOCAL_KERNELS, an absolute path, the embedded hub.
const PackageSources& folder_sources();

// The same and the cache that huggingface_hub and `kernels`
// share. None asks the network. LOCAL_KERNELS and a path settle the question, whatever version was
// asked for; the embedded hub holds one version of each package; the cache answers as
// hub/revision.h says.
const PackageSources& local_sources();

// The same with the Hub in the cache's place (hub_source.h): asked when nothing before it has a
// variant that fits, and only for what the cache lacks.
const PackageSources& default_sources();

// GRAFT_EMBEDDED_HUB, else `share/graft/hub` beside the library's own folder.
std::filesystem::path embedded_hub();

// `share/graft` beside the library's own folder.
std::filesystem::path shared_folder();

// Repositories of the embedded hub, e.g. `graft-kernels/rms-norm`.
std::vector<std::string> embedded_packages();

}  // namespace graft::kernel

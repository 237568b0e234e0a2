// Packages of the Hub, by way of the cache that huggingface_hub and `kernels` share.
#pragma once

#include "graft/hub/snapshot.h"
#include "graft/kernel/package_source.h"
#include "graft/kernel/trust.h"

namespace graft::kernel {

class HubSource final : public PackageSource {
 public:
  enum class Network { kNever, kAsNeeded };
  explicit HubSource(Network network) : network_(network) {}

  // The best variant of `org/repo[@ref]`, fetched if it is not here. A Hub that does not answer is
  // asked again after half a minute; until then the cache answers alone.
  // Throws   NetworkError when neither Hub nor cache answers; IntegrityError of trust.h and of
  //          hub/snapshot.h; FormatError. A repository or version that does not exist is no error:
  //          the attempt says so.
  std::optional<Resolution> resolve(const ResolveRequest& request, Attempt& attempt) const override;

 private:
  Network network_;
};

// What trust is asked of a package of the Hub before it is fetched; the answer is recorded. `fetch` has to
// outlive the question.
TrustQuestion fetch_question(const hub::KernelFetch& fetch);

// What would be done for a reference, and what was found on the way; the upper half of
// HubSource::resolve, for those who want the files as well.
struct HubAnswer {
  hub::KernelSnapshot snapshot;
  Metadata metadata;  // of snapshot.variant
};
HubAnswer ask_hub(const hub::Client& client, const ResolveRequest& request, Attempt& attempt,
                  const hub::KernelSnapshotOptions& options = {});

}  // namespace graft::kernel

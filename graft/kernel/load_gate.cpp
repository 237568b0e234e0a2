#include "graft/kernel/load_gate.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/kernel/digest.h"

namespace graft::kernel {

void require_published_files(const std::string& repository, const Resolution& resolution,
                             const std::filesystem::path& folder,
                             const std::map<std::string, std::filesystem::path>& replaced) {
  if (!resolution.metadata.digest) {
    warn(fmt::format(
        "[kernel.loader] `{}`: metadata.json has no digest; the files could not be verified",
        repository));
    return;
  }
  const auto violations = digest_violations(folder, *resolution.metadata.digest, replaced);
  if (!violations.empty()) {
    throw IntegrityError(
        "kernel.loader", "digest",
        fmt::format("`{}`: expected the published files in `{}`, got {} differences: {}",
                    repository, resolution.folder.string(), violations.size(),
                    fmt::join(violations, "; ")),
        "delete the folder and fetch the package again");
  }
}

void require_loadable(const std::string& repository, const Resolution& resolution,
                      const TrustPolicy& policy, bool record) {
  TrustQuestion question;
  question.repository = repository;
  question.source = resolution.source;
  question.commit = resolution.commit;
  question.ref = resolution.ref;
  question.folder = resolution.folder;
  question.metadata = &resolution.metadata;
  question.record = record;
  require_trusted(question, TrustStage::kLoad, policy);
}

}  // namespace graft::kernel

#include "cli/kernel_text.h"

#include <fmt/format.h>

#include "graft/hub/environment.h"
#include "graft/kernel/reference.h"

#include "cli/output.h"

namespace graft::cli {

kernel::KernelOptions lock_options(const KernelsOptions& options) {
  kernel::KernelOptions out;
  out.device = options.device;
  out.trust.trust_all = options.trust_remote_code;
  return out;
}

kernel::ResolveRequest kernel_argument(const std::string& text, const KernelsOptions& options) {
  kernel::ResolveRequest request =
      kernel::kernel_request("", lock_options(options), /*is_locked=*/true);
  request.reference = kernel::parse_kernel_reference(text);
  request.dry_run = options.dry_run;
  request.allow_rollback = options.allow_rollback;
  return request;
}

std::string name_of(const kernel::ResolvedKernel& kernel) {
  const auto& [repository, ref, layer] = kernel.reference;
  return ref.empty() ? repository : fmt::format("{}@{}", repository, ref);
}

nlohmann::ordered_json to_json(const kernel::ResolvedKernel& kernel) {
  const auto& found = kernel.resolution;
  return {{"kernel", name_of(kernel)},
          {"repository", found.repository},
          {"ref", found.ref},
          {"commit", found.commit},
          {"version", found.metadata.version},
          {"variant", found.variant},
          {"source", found.source},
          {"signed", found.is_signed},
          {"folder", found.folder.string()},
          {"bytes_fetched", found.bytes_fetched}};
}

std::string to_text(const std::vector<kernel::ResolvedKernel>& tree, bool dry_run) {
  std::string text;
  for (const auto& kernel : tree) {
    const auto& found = kernel.resolution;
    text += fmt::format("{}  {}  {}{}  {}{}\n", name_of(kernel), found.variant, found.source,
                        found.commit.empty() ? "" : " at " + found.commit.substr(0, 12),
                        found.bytes_fetched == 0
                            ? "nothing to fetch"
                            : fmt::format("{} {}", format_bytes(found.bytes_fetched),
                                          dry_run ? "to fetch" : "fetched"),
                        found.is_signed ? ", signed" : "");
  }
  return text;
}

trust::Verdict trust_of(const kernel::Resolution& found) {
  trust::Candidate candidate;
  candidate.repository = found.repository;
  candidate.origin = found.source == "embedded hub" ? trust::Origin::kEmbedded
                     : found.commit.empty()         ? trust::Origin::kLocal
                                                    : trust::Origin::kHub;
  candidate.ref = found.ref;
  candidate.commit = found.commit;
  candidate.variant = found.variant;
  candidate.folder = found.folder;
  candidate.endpoint = hub::endpoint();
  candidate.last_word_counts = true;  // nothing is asked here
  return trust::decide(candidate, {.record = false});
}

}  // namespace graft::cli

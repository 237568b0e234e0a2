#include "cli/kernel_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/environment.h"
#include "graft/kernel/canary.h"
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

std::string canary_text(const kernel::CanaryVerdict& verdict) {
  if (verdict.status != kernel::CanaryStatus::kOk) {
    return fmt::format("{}: {}", kernel::canary_status_name(verdict.status), verdict.detail);
  }
  std::vector<std::string> wrong;
  for (const auto& answer : verdict.wrong) {
    wrong.push_back(fmt::format("{} ({}) in {}", answer.layer, answer.variant, answer.dtype));
  }
  const auto list = [](const char* name, const std::vector<std::string>& words) {
    return words.empty() ? "" : fmt::format("; {}: {}", name, fmt::join(words, ", "));
  };
  return fmt::format("ok, {} checks{}{}{}", verdict.num_checks, list("wrong", wrong),
                     list("opened and not run", verdict.unchecked),
                     list("not isolated", verdict.gaps));
}

std::string canary_text_of(const kernel::Resolution& found) {
  if (found.bytes_fetched > 0 || !kernel::decide_canary(found).run) {
    return found.bytes_fetched > 0 ? "will run before it is first loaded" : "not needed";
  }
  try {
    const auto verdict = kernel::remembered_verdict(found);
    return verdict ? canary_text(*verdict) : "will run before it is first loaded";
  } catch (const Error& error) {
    return fmt::format("refused before it: {}", error.code());
  }
}

}  // namespace graft::cli

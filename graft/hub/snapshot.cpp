#include "graft/hub/snapshot.h"

#include <array>
#include <exception>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/environment.h"
#include "graft/hub/kernel_repository.h"
#include "graft/hub/version_spec.h"

namespace graft::hub {

namespace {

// The types in the order to try: what the cache knows first, else the newer type.
std::array<RepoType, 2> types_of(const KernelReference& reference,
                                 const KernelSnapshotOptions& options) {
  const auto cached = [&](RepoType type) {
    return KernelRepository(nullptr, type, reference, options).is_cached();
  };
  if (!cached(RepoType::kKernel) && cached(RepoType::kModel)) {
    return {RepoType::kModel, RepoType::kKernel};
  }
  return {RepoType::kKernel, RepoType::kModel};
}

// An answer that leaves the other type of repository possible.
bool may_be_elsewhere(const NotFound& error) {
  return error.code() != "hub.client.gated" && error.code() != "hub.client.forbidden";
}

// Of the two types' answers the one that says more: a repository that is there and lacks a version
// before one that is not there.
bool says_more(const NotFound& error) {
  return error.code() != "hub.client.repository" && error.code() != "hub.client.unauthorized";
}

KernelSnapshot from_hub(const Client& client, const KernelReference& reference,
                        const KernelSnapshotOptions& options) {
  std::exception_ptr first;
  bool first_says_more = false;
  for (const RepoType type : types_of(reference, options)) {
    try {
      return KernelRepository(&client, type, reference, options).from_hub();
    } catch (const NotFound& error) {
      if (!may_be_elsewhere(error)) {
        throw;
      }
      if (first) {
        std::rethrow_exception(first_says_more || !says_more(error) ? first
                                                                    : std::current_exception());
      }
      first = std::current_exception();
      first_says_more = says_more(error);
    }
  }
  throw InternalError("hub.snapshot", "types", "no type of repository was tried");
}

// The repository is there, but not with what was asked for: it may have moved.
bool may_have_moved(const NotFound& error) {
  const std::string& code = error.code();
  return code == "hub.revision.version" || code == "hub.revision.tag" ||
         code == "hub.client.revision" || code == "hub.client.file";
}

std::optional<Redirect> redirect_on_hub(const Client& client, const KernelReference& reference,
                                        const KernelSnapshotOptions& options) {
  for (const RepoType type : types_of(reference, options)) {
    try {
      if (auto found = KernelRepository(&client, type, reference, options).redirect_on_hub()) {
        return found;
      }
    } catch (const NotFound&) {  // of this type there is none
    }
  }
  return std::nullopt;
}

// One hop is followed: more, or one to itself, is somebody's mistake or trick.
KernelReference destination_of(const KernelReference& reference, const Redirect& redirect,
                               int hops) {
  if (redirect.destination == reference.repo_id || hops > 0) {
    throw FormatError(
        "hub.redirect", redirect.destination == reference.repo_id ? "loop" : "hops",
        fmt::format("`{}`: expected at most one redirect to another repository, got one to `{}`",
                    reference.repo_id, redirect.destination),
        fmt::format("name `{}` if you trust its publisher", redirect.destination));
  }
  log()->warn("`{}` has moved to `{}`", reference.repo_id, redirect.destination);
  return {redirect.destination, redirect.revision.empty() ? reference.ref : redirect.revision};
}

KernelSnapshot follow_on_hub(const Client& client, const KernelReference& reference,
                             const KernelSnapshotOptions& options, int hops) {
  std::optional<KernelSnapshot> snapshot;
  std::exception_ptr missing;
  try {
    snapshot = from_hub(client, reference, options);
    if (!snapshot->variants.empty()) {
      return *snapshot;
    }
  } catch (const NotFound& error) {
    if (!may_have_moved(error)) {
      throw;
    }
    missing = std::current_exception();
  }
  const auto redirect = redirect_on_hub(client, reference, options);
  if (!redirect) {
    if (missing) {
      std::rethrow_exception(missing);
    }
    return *snapshot;
  }
  // The destination is a repository like any other: `permit` is asked about it anew.
  return follow_on_hub(client, destination_of(reference, *redirect, hops), options, hops + 1);
}

std::optional<KernelSnapshot> follow_in_cache(const KernelReference& reference,
                                              const KernelSnapshotOptions& options, int hops) {
  std::optional<KernelSnapshot> without_variant;
  for (const RepoType type : types_of(reference, options)) {
    auto snapshot = KernelRepository(nullptr, type, reference, options).from_cache();
    if (snapshot && !snapshot->variant.empty()) {
      return snapshot;
    }
    without_variant = without_variant ? without_variant : snapshot;
  }
  for (const RepoType type : types_of(reference, options)) {
    if (without_variant) {
      break;
    }
    const auto redirect = KernelRepository(nullptr, type, reference, options).redirect_in_cache();
    if (redirect) {
      return follow_in_cache(destination_of(reference, *redirect, hops), options, hops + 1);
    }
  }
  return without_variant;
}

// Refuses what can be no repository's name and no ref.
void require_names(const KernelReference& reference) {
  find_snapshot("", RepoType::kKernel, reference.repo_id,
                is_version_specifier(reference.ref) ? std::string_view() : reference.ref);
}

}  // namespace

std::optional<KernelSnapshot> find_kernel(const KernelReference& reference,
                                          const KernelSnapshotOptions& options) {
  require_names(reference);
  return follow_in_cache(reference, options, 0);
}

KernelSnapshot snapshot_kernel(const Client& client, const KernelReference& reference,
                               const KernelSnapshotOptions& options) {
  require_names(reference);
  if (offline()) {
    if (auto snapshot = find_kernel(reference, options)) {
      return *snapshot;
    }
    throw NotFound("hub.snapshot", "not-cached",
                   fmt::format("`{}`@`{}`: expected it in the cache, got nothing, and "
                               "HF_HUB_OFFLINE is set",
                               reference.repo_id, reference.ref.empty() ? "v1" : reference.ref),
                   "fetch it once while online");
  }
  try {
    return follow_on_hub(client, reference, options, 0);
  } catch (const NetworkError& error) {
    auto snapshot = find_kernel(reference, options);
    if (!snapshot || snapshot->variant.empty()) {
      throw;
    }
    log()->warn("{}; using what the cache holds of `{}`", error.what(), reference.repo_id);
    return *snapshot;
  }
}

}  // namespace graft::hub

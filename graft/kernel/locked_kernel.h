// Kernels at the commits that a lock names: made, held against what is here, resolved.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "graft/kernel/get_kernel.h"
#include "graft/kernel/lock_file.h"

namespace graft::kernel {

// The commits of these kernels now, of all that any of their variants depends on, and a hash of
// every variant. Each publisher has to be trusted. Network: refs, the list of build/, and one
// metadata.json a variant.
// Throws   as hub::snapshot_kernel; IntegrityError as trust.h; IncompatibleError
//          `kernel.resolver.dependency-*`.
LockFile make_lock(const hub::Client& client, const std::vector<KernelDependency>& kernels,
                   const TrustPolicy& trust);

// The kernel and its dependencies at their locked commits, dependencies first; their content is held
// against the hashes of the lock, where it has any.
// Throws   NotFound `kernel.lock.not-locked`; IntegrityError `kernel.lock.content`;
//          IncompatibleError `kernel.lock.variant` where the lock has hashes but none of the variant
//          that this machine takes.
std::vector<ResolvedKernel> resolve_locked(const std::string& repo_id, const LockFile& lock,
                                           const KernelOptions& options);

// `[tool.kernels.dependencies]` of a pyproject.toml: `"org/repo" = 1`, one a line.
// Throws   NotFound; FormatError `kernel.lock.pyproject` with the line.
std::vector<KernelDependency> read_pyproject(const std::filesystem::path& file);

// Why a variant in the cache is not what the lock says, or an empty text.
std::string content_violation(const LockedEntry& entry, const std::string& variant,
                              const std::filesystem::path& folder);

}  // namespace graft::kernel

// Kernels by name, with the meanings of Python's `kernels`:
//
//   auto relu = graft::kernel::get_kernel("kernels-community/relu", {.version = 1});
//   relu->op("relu").…
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/hub/download.h"
#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"

namespace graft::kernel {

struct KernelOptions {
  // Exactly one of both. version  of a kernel repository; revision  a branch, tag, commit, or a
  // specifier such as `>=0.1,<0.2` of an older repository.
  std::optional<int64_t> version = {};
  std::string revision = {};
  std::string device = "cpu";  // `cpu` or `cuda`: which build variant
  // Python's trust_remote_code: all, or these repositories; else the Hub's word on the publisher.
  TrustPolicy trust = {};
  bool check_arch = true;
  bool local_files_only = false;  // no request; as HF_HUB_OFFLINE for this call
  bool dry_run = false;           // of resolve_locked(): as ResolveRequest
};

// Downloads what is missing, verifies, loads, dependencies first. LOCAL_KERNELS overrides.
//
// repo_id  `org/repo`, or the absolute path of a folder (then without version and revision)
// Throws   InvalidArgument `kernel.get.version`; as resolve_tree() and load().
std::shared_ptr<const LoadedKernel> get_kernel(const std::string& repo_id,
                                               const KernelOptions& options);

// Whether a variant fits this machine and its device; nothing is downloaded but metadata.json.
// Throws   NotFound where repository or version do not exist; IntegrityError for an untrusted
//          publisher; NetworkError.
bool has_kernel(const std::string& repo_id, const KernelOptions& options);

// As get_kernel without loading; the folder of the variant.
std::filesystem::path install_kernel(const std::string& repo_id, const KernelOptions& options);

// One build variant and whether this system takes it.
struct VariantDecision {
  std::string variant;
  bool is_accepted = false;
  std::string reason;  // of a refusal
};

// All variants, those that are accepted first, best first. Nothing is downloaded; the publisher is
// not asked about. Throws as has_kernel, but for trust.
std::vector<VariantDecision> get_kernel_variants(const std::string& repo_id,
                                                 const KernelOptions& options);

// Loads at the commit that a lock file names (lock_file.h); dependencies at theirs. Downloads what
// is missing. The content is held against the lock where it has hashes.
// Throws   NotFound `kernel.lock.not-locked`; IntegrityError `kernel.lock.content`; as get_kernel
//          and read_lock_file().
std::shared_ptr<const LoadedKernel> get_locked_kernel(const std::string& repo_id,
                                                      const std::filesystem::path& lock_file,
                                                      const KernelOptions& options = {});

// The same without a request: what the lock names has to be in the cache.
std::shared_ptr<const LoadedKernel> load_kernel(const std::string& repo_id,
                                                const std::filesystem::path& lock_file,
                                                const KernelOptions& options = {});

// What a device asks of a kernel: variants of this system for it, code for its compute capability. Opens CUDA for a
// CUDA device.
ResolveRequest device_request(LayerReference reference, at::Device device);

// The request that options stand for: device, system, trust. Opens CUDA for a CUDA device.
// is_locked  version and revision come from elsewhere
ResolveRequest kernel_request(const std::string& repo_id, const KernelOptions& options,
                              bool is_locked = false);

// Loads what resolve_tree() gave, dependencies first; returns the last.
std::shared_ptr<const LoadedKernel> load_tree(const std::vector<ResolvedKernel>& tree,
                                              const TrustPolicy& trust);

}  // namespace graft::kernel

#include "graft/kernel/get_kernel.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/environment.h"
#include "graft/hub/snapshot.h"
#include "graft/kernel/lock_file.h"
#include "graft/kernel/locked_kernel.h"
#include "graft/tensor/device.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

std::string ref_of(const std::string& repo_id, const KernelOptions& options) {
  const bool is_path = repo_id.starts_with('/');
  const int given = (options.version ? 1 : 0) + (options.revision.empty() ? 0 : 1);
  if (given != (is_path ? 0 : 1) || (options.version && *options.version < 0)) {
    throw InvalidArgument("kernel.get", "version",
                          fmt::format("`{}`: expected {} of version and revision, got {}", repo_id,
                                      is_path ? "none" : "exactly one",
                                      given == 2   ? "both"
                                      : given == 0 ? "none"
                                                   : "one"),
                          is_path ? "" : "name a version: {.version = 1}");
  }
  return options.version ? fmt::format("v{}", *options.version) : options.revision;
}

const PackageSources& sources_of(const KernelOptions& options) {
  return options.local_files_only ? local_sources() : default_sources();
}

std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<VariantDecision> decide(const std::vector<std::string>& names, const System& system) {
  const VariantChoice choice = choose_variants(names, system);
  std::vector<VariantDecision> decisions;
  for (const auto& variant : choice.accepted) {
    decisions.push_back({variant.name, true, ""});
  }
  for (const auto& [name, reason] : choice.refused) {
    decisions.push_back({name, false, reason});
  }
  return decisions;
}

// The names of a repository's variants, without choosing or fetching one.
std::vector<std::string> hub_variants(const ResolveRequest& request, bool local_files_only) {
  hub::KernelSnapshotOptions options;
  options.dry_run = true;
  options.choose = [](const std::vector<std::string>&) { return std::vector<std::string>{}; };
  const hub::KernelReference reference{request.reference.repository, request.reference.ref};
  if (local_files_only || hub::offline()) {
    const auto found = hub::find_kernel(reference, options);
    if (!found) {
      throw NotFound("hub.snapshot", "not-cached",
                     fmt::format("`{}`: expected it in the cache, got nothing", reference.repo_id),
                     "fetch it once while online");
    }
    return found->variants;
  }
  return hub::snapshot_kernel(hub::Client(), reference, options).variants;
}

}  // namespace

ResolveRequest device_request(LayerReference reference, at::Device device) {
  tensor::ensure_device(device);
  ResolveRequest request;
  request.reference = std::move(reference);
  request.system = this_system(device.is_cuda() ? "cuda" : "cpu",
                               device.is_cuda() ? tensor::torch_cuda_version() : 0);
  request.capability = tensor::capability(device);
  return request;
}

ResolveRequest kernel_request(const std::string& repo_id, const KernelOptions& options,
                              bool is_locked) {
  const at::Device device = tensor::parse_device(options.device);
  ResolveRequest request =
      device_request({repo_id, is_locked ? "" : ref_of(repo_id, options), ""}, device);
  request.trust = options.trust;
  request.check_arch = options.check_arch;
  request.dry_run = options.dry_run;
  return request;
}

std::shared_ptr<const LoadedKernel> load_tree(const std::vector<ResolvedKernel>& tree,
                                              const TrustPolicy& trust) {
  std::vector<std::shared_ptr<const LoadedKernel>> loaded;
  for (const auto& [reference, resolution, dependencies] : tree) {
    std::vector<std::shared_ptr<const LoadedKernel>> of_this;
    for (const size_t index : dependencies) {
      of_this.push_back(loaded[index]);
    }
    loaded.push_back(load(resolution.repository, resolution, trust, std::move(of_this)));
  }
  return loaded.back();
}

std::shared_ptr<const LoadedKernel> get_kernel(const std::string& repo_id,
                                               const KernelOptions& options) {
  return load_tree(resolve_tree(kernel_request(repo_id, options), sources_of(options)),
                   options.trust);
}

bool has_kernel(const std::string& repo_id, const KernelOptions& options) {
  ResolveRequest request = kernel_request(repo_id, options);
  request.dry_run = true;
  try {
    resolve_tree(request, sources_of(options));
    return true;
  } catch (const IncompatibleError& error) {
    if (error.code() == "kernel.resolver.no-variant" ||
        error.code() == "kernel.resolver.architecture") {
      return false;
    }
    throw;
  }
}

fs::path install_kernel(const std::string& repo_id, const KernelOptions& options) {
  return resolve_tree(kernel_request(repo_id, options), sources_of(options))
      .back()
      .resolution.folder;
}

std::vector<VariantDecision> get_kernel_variants(const std::string& repo_id,
                                                 const KernelOptions& options) {
  const ResolveRequest request = kernel_request(repo_id, options);
  Attempt attempt;
  for (const auto& source : folder_sources()) {
    if (const auto found = source->resolve(request, attempt)) {
      return decide(folders_in(found->folder.parent_path()), request.system);
    }
    if (!attempt.refused.empty()) {  // the package is there, and nothing of it fits
      std::vector<VariantDecision> decisions;
      for (const auto& [name, reason] : attempt.refused) {
        decisions.push_back({name, false, reason});
      }
      return decisions;
    }
  }
  if (attempt.settled) {
    throw NotFound(
        "kernel.resolver", "missing-package",
        fmt::format("`{}`: expected a kernel package with build variants, got none", repo_id));
  }
  return decide(hub_variants(request, options.local_files_only), request.system);
}

std::shared_ptr<const LoadedKernel> get_locked_kernel(const std::string& repo_id,
                                                      const fs::path& lock_file,
                                                      const KernelOptions& options) {
  return load_tree(resolve_locked(repo_id, read_lock_file(lock_file), options), options.trust);
}

std::shared_ptr<const LoadedKernel> load_kernel(const std::string& repo_id,
                                                const fs::path& lock_file,
                                                const KernelOptions& options) {
  KernelOptions local = options;
  local.local_files_only = true;
  return get_locked_kernel(repo_id, lock_file, local);
}

}  // namespace graft::kernel

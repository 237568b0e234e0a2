#include "graft/kernel/resolver.h"

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/environment.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

std::string capability_refusal(const Metadata& metadata, int capability) {
  return arch_fits(metadata.archs, capability)
             ? ""
             : fmt::format("compute capability: built for {}, the device has {}.{}",
                           fmt::join(metadata.archs, ", "), capability / 10, capability % 10);
}

// Why metadata.json contradicts the folder's name or the version that was asked for.
std::string metadata_refusal(const Metadata& metadata, const std::string& backend,
                             std::optional<int64_t> version) {
  if (metadata.backend != backend) {
    return fmt::format("metadata.json says backend {}, the folder's name {}", metadata.backend,
                       backend);
  }
  if (version && metadata.version != *version) {
    return fmt::format("this is version {}, v{} was asked for", metadata.version, *version);
  }
  return "";
}

[[noreturn]] void fail_variants(const ResolveRequest& request, const Attempt& attempt) {
  const System& system = request.system;
  std::string text = fmt::format(
      "`{}`: expected a build variant for torch {}.{}, {}{} on {}-{}, got none that fits:",
      request.reference.repository, system.torch.major, system.torch.minor, system.backend,
      system.backend == "cuda"
          ? fmt::format(" {}.{}", system.backend_version.major, system.backend_version.minor)
          : "",
      system.cpu, system.os);
  std::set<std::string> said;
  for (const auto& [name, reason] : attempt.refused) {
    if (auto line = fmt::format("\n  {}: {}", name, reason); said.insert(line).second) {
      text += line;
    }
  }
  for (const auto& place : attempt.looked) {
    text += fmt::format("\n  {}", place);
  }
  const auto is_python = [&](const auto& refused) {
    const std::string backend = parse_variant(refused.first).value_or(Variant{}).backend;
    return refused.second == kPythonOnly && (backend == system.backend || backend == "universal");
  };
  const bool can_compile = std::any_of(attempt.refused.begin(), attempt.refused.end(), is_python);
  const auto& [repository, ref, layer] = request.reference;
  throw IncompatibleError(
      "kernel.resolver", attempt.only_architecture ? "architecture" : "no-variant", text,
      can_compile ? fmt::format("compile the layer once, where Python, torch and Triton are: graft "
                                "kernels aot {}{}{}:{} --device {} --out FOLDER",
                                repository, ref.empty() ? "" : "@", ref,
                                layer.empty() ? "LAYER" : layer, system.backend)
                  : "");
}

[[noreturn]] void fail_package(const ResolveRequest& request, const Attempt& attempt) {
  const auto& [repository, ref, layer] = request.reference;
  throw NotFound(
      "kernel.resolver", "missing-package",
      fmt::format("`{}`: expected a kernel package with build variants, got none (looked at {})",
                  repository, fmt::join(attempt.looked, "; ")),
      hub::offline() && !request.reference.is_path()
          ? fmt::format("fetch it once while online: graft kernels get {}@{}", repository,
                        ref.empty() ? "v1" : ref)
          : "name a folder with LOCAL_KERNELS=org/repo=/path, or `/path:Layer`");
}

constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxKernels = 64;

std::string name_of(const LayerReference& reference) {
  return reference.repository + (reference.ref.empty() ? "" : "@" + reference.ref);
}

// Walks the tree; `path` holds the names that are being resolved.
class TreeResolver {
 public:
  TreeResolver(const ResolveRequest& request, const PackageSources& sources, const Pin& pin)
      : request_(request), sources_(sources), pin_(pin) {}

  size_t add(const LayerReference& reference) {
    const std::string name = name_of(reference);
    require_tree(name);
    if (const auto known = known_.find(name); known != known_.end()) {
      return known->second;
    }
    path_.push_back(name);
    ResolveRequest request = request_;
    request.reference = pin_ ? pin_(reference) : reference;
    ResolvedKernel kernel{reference, resolve(request, sources_), {}};
    for (const auto& dependency : kernel.resolution.metadata.kernel_depends) {
      kernel.dependencies.push_back(add({dependency.repo_id, dependency.ref(), reference.layer}));
    }
    path_.pop_back();
    kernels_.push_back(std::move(kernel));
    return known_[name] = kernels_.size() - 1;
  }

  std::vector<ResolvedKernel> take() { return std::move(kernels_); }

 private:
  void require_tree(const std::string& name) const {
    const char* reason = std::find(path_.begin(), path_.end(), name) != path_.end()
                             ? "dependency-cycle"
                         : path_.size() > kMaxDepth       ? "dependency-depth"
                         : kernels_.size() >= kMaxKernels ? "dependency-count"
                                                          : nullptr;
    if (reason != nullptr) {
      throw IncompatibleError(
          "kernel.resolver", reason,
          fmt::format(
              "kernel-depends: expected a tree of at most {} kernels, {} deep, got {} -> {}",
              kMaxKernels, kMaxDepth, fmt::join(path_, " -> "), name));
    }
  }

  const ResolveRequest& request_;
  const PackageSources& sources_;
  const Pin& pin_;
  std::vector<std::string> path_;
  std::map<std::string, size_t> known_;
  std::vector<ResolvedKernel> kernels_;
};

}  // namespace

std::vector<ResolvedKernel> resolve_tree(const ResolveRequest& request,
                                         const PackageSources& sources, const Pin& pin) {
  TreeResolver resolver(request, sources, pin);
  resolver.add(request.reference);
  return resolver.take();
}

VariantJudge::VariantJudge(const ResolveRequest& request, std::optional<int64_t> version,
                           Attempt& attempt)
    : request_(request), version_(version), attempt_(attempt) {}

std::vector<std::string> VariantJudge::choose(const std::vector<std::string>& names) {
  VariantChoice choice = choose_variants(names, request_.system);
  std::vector<std::string> accepted;
  for (const Variant& variant : choice.accepted) {
    accepted.push_back(variant.name);
  }
  attempt_.refused.insert(attempt_.refused.end(), choice.refused.begin(), choice.refused.end());
  return accepted;
}

bool VariantJudge::accept(const fs::path& folder) {
  const std::string name = folder.filename().string();
  Metadata metadata = read_metadata(folder / "metadata.json");
  std::string reason =
      metadata_refusal(metadata, parse_variant(name).value_or(Variant{}).backend, version_);
  if (reason.empty() && request_.check_arch && request_.system.backend == "cuda") {
    reason = capability_refusal(metadata, request_.capability);
    attempt_.only_architecture |= !reason.empty();
  }
  if (!reason.empty()) {
    attempt_.refused.emplace_back(name, std::move(reason));
    return false;
  }
  metadata_ = std::move(metadata);
  return true;
}

Resolution resolve(const ResolveRequest& request, const PackageSources& sources) {
  Attempt attempt;
  for (const auto& source : sources) {
    if (auto found = source->resolve(request, attempt)) {
      found->refused = std::move(attempt.refused);
      return std::move(*found);
    }
    if (attempt.settled) {
      break;
    }
  }
  if (attempt.refused.empty()) {
    fail_package(request, attempt);
  }
  fail_variants(request, attempt);
}

}  // namespace graft::kernel

#include "graft/kernel/resolver.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

struct Found {
  Package package;
  std::string source;
};

Found find_package(const LayerReference& reference, const PackageSources& sources) {
  std::vector<std::string> looked;
  for (const auto& source : sources) {
    std::string place;
    if (auto package = source->find(reference, place)) {
      return {std::move(*package), source->name()};
    }
    if (!place.empty()) {
      looked.push_back(std::move(place));
    }
  }
  throw NotFound(
      "kernel.resolver", "missing-package",
      fmt::format("`{}`: expected a kernel package with build variants, got none (looked at {})",
                  reference.repository, fmt::join(looked, "; ")),
      "name a folder with LOCAL_KERNELS=org/repo=/path, or `/path:Layer`");
}

std::vector<std::string> variant_names(const Package& package) {
  if (!package.only_variant.empty()) {
    return {package.only_variant};
  }
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(package.variants_folder)) {
    if (entry.is_directory()) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string capability_refusal(const Metadata& metadata, int capability) {
  return arch_fits(metadata.archs, capability)
             ? ""
             : fmt::format("compute capability: built for {}, the device has {}.{}",
                           fmt::join(metadata.archs, ", "), capability / 10, capability % 10);
}

// Why metadata.json contradicts the folder's name or the version that was asked for.
std::string metadata_refusal(const Metadata& metadata, const Variant& variant,
                             const Package& package) {
  if (metadata.backend != variant.backend) {
    return fmt::format("metadata.json says backend {}, the folder's name {}", metadata.backend,
                       variant.backend);
  }
  if (package.version && metadata.version != *package.version) {
    return fmt::format("this is version {}, v{} was asked for", metadata.version, *package.version);
  }
  return "";
}

[[noreturn]] void fail(const ResolveRequest& request, bool only_architecture,
                       const VariantChoice& choice) {
  const System& system = request.system;
  std::string text = fmt::format(
      "`{}`: expected a build variant for torch {}.{}, {}{} on {}-{}, got none that fits:",
      request.reference.repository, system.torch.major, system.torch.minor, system.backend,
      system.backend == "cuda"
          ? fmt::format(" {}.{}", system.backend_version.major, system.backend_version.minor)
          : "",
      system.cpu, system.os);
  for (const auto& [name, reason] : choice.refused) {
    text += fmt::format("\n  {}: {}", name, reason);
  }
  throw IncompatibleError("kernel.resolver", only_architecture ? "architecture" : "no-variant",
                          text);
}

}  // namespace

Resolution resolve(const ResolveRequest& request, const PackageSources& sources) {
  const auto [package, source] = find_package(request.reference, sources);
  VariantChoice choice = choose_variants(variant_names(package), request.system);
  bool only_architecture = false;
  for (const Variant& variant : choice.accepted) {
    const fs::path folder = package.variants_folder / variant.name;
    Metadata metadata = read_metadata(folder / "metadata.json");
    std::string reason = metadata_refusal(metadata, variant, package);
    if (reason.empty() && request.system.backend == "cuda") {
      reason = capability_refusal(metadata, request.capability);
      only_architecture |= !reason.empty();
    }
    if (reason.empty()) {
      return {folder, variant.name,   std::move(metadata),
              source, package.commit, std::move(choice.refused)};
    }
    choice.refused.emplace_back(variant.name, std::move(reason));
  }
  fail(request, only_architecture, choice);
}

}  // namespace graft::kernel

#include "graft/kernel/resolver.h"

#include <algorithm>

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/env.h"
#include "graft/core/error.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

// `repo=path` pairs joined with `:`.
fs::path local_override(const std::string& repository) {
  const std::string list = env::get("LOCAL_KERNELS").value_or("");
  for (size_t start = 0; start < list.size();) {
    const size_t end = std::min(list.find(':', start), list.size());
    const std::string pair = list.substr(start, end - start);
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == pair.size()) {
      throw InvalidArgument(
          "kernel.resolver", "local-kernels",
          fmt::format("LOCAL_KERNELS: expected `repo=path` pairs joined with `:`, got `{}`", pair));
    }
    if (pair.substr(0, equals) == repository) {
      return pair.substr(equals + 1);
    }
    start = end + 1;
  }
  return {};
}

struct Place {
  fs::path folder;  // holds build/
  std::string source;
};

Place find_repository(const LayerReference& reference) {
  std::vector<std::string> looked;
  const auto is_there = [&](const fs::path& folder, const std::string& source) {
    looked.push_back(fmt::format("{}: `{}`", source, folder.string()));
    return fs::is_directory(folder / "build");
  };
  if (const auto folder = local_override(reference.repository);
      !folder.empty() && is_there(folder, "LOCAL_KERNELS")) {
    return {folder, "LOCAL_KERNELS"};
  }
  if (reference.is_path() && is_there(reference.repository, "path")) {
    return {reference.repository, "path"};
  }
  if (!reference.is_path() && is_there(embedded_hub() / reference.repository, "embedded hub")) {
    return {embedded_hub() / reference.repository, "embedded hub"};
  }
  throw NotFound(
      "kernel.resolver", "missing-package",
      fmt::format("`{}`: expected a kernel package with a folder build/, got none (looked at {})",
                  reference.repository, fmt::join(looked, ", ")),
      "name a folder with LOCAL_KERNELS=org/repo=/path, or `/path:Layer`");
}

std::string lines(const std::vector<std::pair<std::string, std::string>>& refused) {
  std::string text;
  for (const auto& [name, reason] : refused) {
    text += fmt::format("\n  {}: {}", name, reason);
  }
  return text;
}

}  // namespace

fs::path embedded_hub() {
  if (const auto named = env::get("GRAFT_EMBEDDED_HUB")) {
    return *named;
  }
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&embedded_hub), &info);
  return fs::weakly_canonical(fs::path(info.dli_fname)).parent_path().parent_path() /
         "share/graft/hub";
}

std::vector<std::string> embedded_packages() {
  std::vector<std::string> packages;
  std::error_code status;
  for (const auto& org : fs::directory_iterator(embedded_hub(), status)) {
    for (const auto& repo : fs::directory_iterator(org.path(), status)) {
      if (fs::is_directory(repo.path() / "build")) {
        packages.push_back(
            fmt::format("{}/{}", org.path().filename().string(), repo.path().filename().string()));
      }
    }
  }
  std::sort(packages.begin(), packages.end());
  return packages;
}

Resolution resolve(const ResolveRequest& request) {
  const Place place = find_repository(request.reference);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(place.folder / "build")) {
    if (entry.is_directory()) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  VariantChoice choice = choose_variants(names, request.system);
  bool only_architecture = false;
  for (const Variant& variant : choice.accepted) {
    const fs::path folder = place.folder / "build" / variant.name;
    Metadata metadata = read_metadata(folder / "metadata.json");
    if (request.system.backend == "cuda" && !arch_fits(metadata.archs, request.capability)) {
      only_architecture = true;
      choice.refused.emplace_back(
          variant.name, fmt::format("compute capability: built for {}, the device has {}.{}",
                                    fmt::join(metadata.archs, ", "), request.capability / 10,
                                    request.capability % 10));
      continue;
    }
    return {folder, variant.name, std::move(metadata), place.source, std::move(choice.refused)};
  }
  throw IncompatibleError(
      "kernel.resolver", only_architecture ? "architecture" : "no-variant",
      fmt::format(
          "`{}`: expected a build variant for torch {}.{}, {}{} on {}-{}, got none that fits:{}",
          request.reference.repository, request.system.torch.major, request.system.torch.minor,
          request.system.backend,
          request.system.backend == "cuda"
              ? fmt::format(" {}.{}", request.system.backend_version.major,
                            request.system.backend_version.minor)
              : "",
          request.system.cpu, request.system.os, lines(choice.refused)));
}

}  // namespace graft::kernel

#include "graft/kernel/package_source.h"

#include <algorithm>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/hub/revision.h"
#include "graft/kernel/hub_source.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

// A package in a folder of its own.
struct Package {
  fs::path variants_folder;             // its sub-folders are the build variants
  std::string only_variant = {};        // the one to look at; empty: all of them
  std::optional<int64_t> version = {};  // that metadata.json must name; absent: any
};

// A folder that a person named: the repository, its build/, or one variant of it.
std::optional<Package> package_in(const fs::path& folder) {
  std::error_code status;
  if (fs::is_directory(folder / "build", status)) {
    return Package{folder / "build"};
  }
  if (fs::is_regular_file(folder / "metadata.json", status)) {
    const fs::path whole = fs::weakly_canonical(folder);
    return Package{whole.parent_path(), whole.filename().string()};
  }
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    if (entry.is_directory(status) && parse_variant(entry.path().filename().string())) {
      return Package{folder};
    }
  }
  return std::nullopt;
}

std::string not_in(std::string_view source, const fs::path& folder) {
  return fmt::format("{}: `{}`", source, folder.string());
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

std::optional<Resolution> best_of(const Package& package, const char* source,
                                  const ResolveRequest& request, Attempt& attempt) {
  VariantJudge judge(request, package.version, attempt);
  for (const auto& name : judge.choose(variant_names(package))) {
    const fs::path folder = package.variants_folder / name;
    if (judge.accept(folder)) {
      Resolution found;
      found.folder = folder;
      found.variant = name;
      found.metadata = judge.metadata();
      found.source = source;
      found.repository = request.reference.repository;
      found.is_signed = fs::exists(folder / "metadata.json.sigstore");
      return found;
    }
  }
  return std::nullopt;
}

// `repo=path` pairs joined with `:`. A repository that is named there comes from there or not at
// all.
class LocalKernels final : public PackageSource {
 public:
  std::optional<Resolution> resolve(const ResolveRequest& request,
                                    Attempt& attempt) const override {
    const std::string& repository = request.reference.repository;
    const std::string list = env::get("LOCAL_KERNELS").value_or("");
    for (size_t start = 0; start < list.size();) {
      const size_t end = std::min(list.find(':', start), list.size());
      const std::string pair = list.substr(start, end - start);
      const auto equals = pair.find('=');
      if (equals == std::string::npos || equals == 0 || equals + 1 == pair.size()) {
        throw InvalidArgument(
            "kernel.resolver", "local-kernels",
            fmt::format("LOCAL_KERNELS: expected `repo=path` pairs joined with `:`, got `{}`",
                        pair));
      }
      if (pair.substr(0, equals) == repository) {
        const auto package = package_in(pair.substr(equals + 1));
        if (!package) {
          throw NotFound(
              "kernel.resolver", "local-kernels",
              fmt::format("LOCAL_KERNELS: expected build variants of `{}` in `{}`, got none",
                          repository, pair.substr(equals + 1)));
        }
        attempt.settled = true;
        return best_of(*package, "LOCAL_KERNELS", request, attempt);
      }
      start = end + 1;
    }
    return std::nullopt;
  }
};

class NamedPath final : public PackageSource {
 public:
  std::optional<Resolution> resolve(const ResolveRequest& request,
                                    Attempt& attempt) const override {
    if (!request.reference.is_path()) {
      return std::nullopt;
    }
    attempt.settled = true;
    const auto package = package_in(request.reference.repository);
    if (!package) {
      attempt.looked.push_back(not_in("path", request.reference.repository));
      return std::nullopt;
    }
    return best_of(*package, "path", request, attempt);
  }
};

class EmbeddedHub final : public PackageSource {
 public:
  std::optional<Resolution> resolve(const ResolveRequest& request,
                                    Attempt& attempt) const override {
    const auto& [repository, ref, layer] = request.reference;
    const fs::path folder = embedded_hub() / repository;
    const auto version = hub::version_branch(ref);
    if (!fs::is_directory(folder / "build") || (!ref.empty() && !version)) {
      attempt.looked.push_back(
          not_in("embedded hub", folder) +
          (ref.empty() || version
               ? ""
               : fmt::format(", which holds one version, not the ref `{}`", ref)));
      return std::nullopt;
    }
    return best_of({folder / "build", "", version}, "embedded hub", request, attempt);
  }
};

PackageSources sources_with(HubSource::Network network) {
  PackageSources sources = folder_sources();
  sources.push_back(std::make_shared<HubSource>(network));
  return sources;
}

}  // namespace

const PackageSources& folder_sources() {
  static const PackageSources sources = {std::make_shared<LocalKernels>(),
                                         std::make_shared<NamedPath>(),
                                         std::make_shared<EmbeddedHub>()};
  return sources;
}

const PackageSources& local_sources() {
  static const PackageSources sources = sources_with(HubSource::Network::kNever);
  return sources;
}

const PackageSources& default_sources() {
  static const PackageSources sources = sources_with(HubSource::Network::kAsNeeded);
  return sources;
}

fs::path embedded_hub() {
  if (const auto named = env::get("GRAFT_EMBEDDED_HUB")) {
    return *named;
  }
  return shared_folder() / "hub";
}

fs::path shared_folder() {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&shared_folder), &info);
  return fs::weakly_canonical(fs::path(info.dli_fname)).parent_path().parent_path() / "share/graft";
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

}  // namespace graft::kernel

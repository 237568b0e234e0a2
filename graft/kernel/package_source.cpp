#include "graft/kernel/package_source.h"

#include <algorithm>
#include <charconv>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/hub/environment.h"
#include "graft/kernel/variant.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

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

// `v7` -> 7.
std::optional<int64_t> version_branch(std::string_view ref) {
  int64_t version = 0;
  if (ref.size() < 2 || ref[0] != 'v' || ref[1] < '0' || ref[1] > '9') {
    return std::nullopt;
  }
  const auto [end, status] = std::from_chars(ref.data() + 1, ref.data() + ref.size(), version);
  return status == std::errc() && end == ref.data() + ref.size() ? std::optional(version)
                                                                 : std::nullopt;
}

// `repo=path` pairs joined with `:`. A repository that is named there comes from there or not at
// all.
class LocalKernels final : public PackageSource {
 public:
  std::string name() const override { return "LOCAL_KERNELS"; }

  std::optional<Package> find(const LayerReference& reference, std::string&) const override {
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
      if (pair.substr(0, equals) == reference.repository) {
        auto package = package_in(pair.substr(equals + 1));
        if (!package) {
          throw NotFound(
              "kernel.resolver", "local-kernels",
              fmt::format("LOCAL_KERNELS: expected build variants of `{}` in `{}`, got none",
                          reference.repository, pair.substr(equals + 1)));
        }
        return package;
      }
      start = end + 1;
    }
    return std::nullopt;
  }
};

class NamedPath final : public PackageSource {
 public:
  std::string name() const override { return "path"; }

  std::optional<Package> find(const LayerReference& reference, std::string& looked) const override {
    if (!reference.is_path()) {
      return std::nullopt;
    }
    looked = not_in(name(), reference.repository);
    return package_in(reference.repository);
  }
};

class EmbeddedHub final : public PackageSource {
 public:
  std::string name() const override { return "embedded hub"; }

  std::optional<Package> find(const LayerReference& reference, std::string& looked) const override {
    if (reference.is_path()) {
      return std::nullopt;
    }
    const fs::path folder = embedded_hub() / reference.repository;
    looked = not_in(name(), folder);
    if (!fs::is_directory(folder / "build")) {
      return std::nullopt;
    }
    const auto version = version_branch(reference.ref);
    if (!reference.ref.empty() && !version) {
      looked += fmt::format(", which holds one version, not the ref `{}`", reference.ref);
      return std::nullopt;
    }
    return Package{folder / "build", "", version};
  }
};

class HubCache final : public PackageSource {
 public:
  std::string name() const override { return "cache"; }

  std::optional<Package> find(const LayerReference& reference, std::string& looked) const override {
    if (reference.is_path()) {
      return std::nullopt;
    }
    const fs::path kernels = hub::kernels_cache_folder(), models = hub::cache_folder();
    looked = not_in(name(), kernels);
    if (reference.ref.find_first_of("<>=!~,") != std::string::npos) {
      looked +=
          fmt::format(" (a specifier such as `{}` needs the Hub's list of tags)", reference.ref);
      return std::nullopt;
    }
    for (const auto& [folder, type, ref] : {std::tuple{&kernels, hub::RepoType::kKernel, "v1"},
                                            std::tuple{&models, hub::RepoType::kModel, "main"}}) {
      const auto snapshot = hub::find_snapshot(*folder, type, reference.repository,
                                               reference.ref.empty() ? ref : reference.ref);
      if (snapshot && fs::is_directory(snapshot->folder / "build")) {
        return Package{snapshot->folder / "build", "", std::nullopt, snapshot->commit};
      }
    }
    return std::nullopt;
  }
};

}  // namespace

const PackageSources& local_sources() {
  static const PackageSources sources = {
      std::make_shared<LocalKernels>(), std::make_shared<NamedPath>(),
      std::make_shared<EmbeddedHub>(), std::make_shared<HubCache>()};
  return sources;
}

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

}  // namespace graft::kernel

#include "graft/kernel/loader.h"

#include <mutex>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/kernel/canary.h"
#include "graft/kernel/compiled_layer.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/load_gate.h"
#include "graft/kernel/open_kernel.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;
using Dependencies = std::vector<std::shared_ptr<const LoadedKernel>>;

// What is about to be opened are the sealed copies, so these are held against the digest.
void require_gate(const std::string& repository, const Resolution& resolution,
                  const SealedLibraries& libraries, const TrustPolicy& trust) {
  std::map<std::string, fs::path> sealed;
  for (const auto& library : libraries) {
    sealed.emplace(library->file().filename().string(), library->path());
  }
  require_published_files(repository, resolution, resolution.folder, sealed);
  require_loadable(repository, resolution, trust);
}

// One digest means the same files: a branch that moved on without a change to this variant.
bool is_same(const LoadedKernel& loaded, const std::string& repository,
             const Resolution& resolution) {
  std::error_code status;  // of a folder that is gone by now
  const bool same_folder = fs::equivalent(loaded.folder, resolution.folder, status);
  if (same_folder || loaded.repository != repository) {
    return same_folder;
  }
  const auto& left = loaded.metadata.digest;
  const auto& right = resolution.metadata.digest;
  return left && right && left->algorithm == right->algorithm && left->files == right->files &&
         digest_violations(resolution.folder, *right).empty();
}

std::shared_ptr<LoadedKernel> verify_and_open_compiled(const std::string& repository,
                                                       const Resolution& resolution,
                                                       const TrustPolicy& trust) {
  const SealedLibraries libraries = seal_compiled_layer(resolution.folder);
  require_gate(repository, resolution, libraries, trust);
  check_compiled_layer(repository, resolution.metadata, libraries);
  auto wrong_answers = pass_canary(repository, resolution, libraries);
  auto kernel = open_compiled_layer(repository, resolution, libraries);
  kernel->wrong_answers = std::move(wrong_answers);
  return kernel;
}

std::shared_ptr<LoadedKernel> verify_and_open(const std::string& repository,
                                              const Resolution& resolution,
                                              const TrustPolicy& trust) {
  const std::string& id = resolution.metadata.id;
  const auto library =
      std::make_shared<const SealedLibrary>(find_library(resolution.folder, id, repository));
  require_gate(repository, resolution, {library}, trust);
  const bool is_open = is_open_already(repository, id, library->file());
  std::vector<CanaryWrongAnswer> wrong_answers;
  if (!is_open) {
    const ElfFacts facts = check_library(repository, id, *library);
    wrong_answers = pass_canary(repository, resolution, {library});
    check_unique_symbols(repository, id, facts);
  }
  auto kernel = open_kernel(repository, resolution, library, is_open);
  kernel->wrong_answers = std::move(wrong_answers);
  return kernel;
}

}  // namespace

c10::OperatorHandle LoadedKernel::op(const std::string& name) const {
  const auto found = c10::Dispatcher::singleton().findSchema({metadata.id + "::" + name, ""});
  if (!found) {
    throw LoadError("kernel.loader", "missing-op",
                    fmt::format("`{}`: expected op `{}`, got only {}", repository, name,
                                fmt::join(op_names(), ", ")));
  }
  return *found;
}

std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution, const TrustPolicy& trust,
                                         Dependencies dependencies) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const LoadedKernel>> loaded;  // by id
  const std::lock_guard lock(mutex);
  const auto found = loaded.find(resolution.metadata.id);
  if (found != loaded.end()) {
    if (is_same(*found->second, repository, resolution)) {
      return found->second;
    }
    throw LoadError(
        "kernel.loader", "id-taken",
        fmt::format("`{}`: expected an id of its own, but `{}` is loaded from `{}`", repository,
                    resolution.metadata.id, found->second->folder.string()));
  }
  auto kernel = is_compiled_layer(resolution.folder)
                    ? verify_and_open_compiled(repository, resolution, trust)
                    : verify_and_open(repository, resolution, trust);
  kernel->dependencies = std::move(dependencies);
  loaded.emplace(resolution.metadata.id, kernel);
  return kernel;
}

std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution) {
  return load(repository, resolution, TrustPolicy{}, {});
}

}  // namespace graft::kernel

#include "graft/kernel/loader.h"

#include <mutex>

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/elf_check.h"
#include "graft/kernel/package_source.h"
#include "graft/kernel/published_layers.h"
#include "graft/kernel/trust.h"

// Kernel libraries carry an entry point for Python, which nobody calls here; one bound with `-z
// now` still wants the symbol that the entry point uses.
extern "C" __attribute__((visibility("default"), weak)) void* PyModule_Create2(void*, int) {
  return nullptr;
}

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;
using Dependencies = std::vector<std::shared_ptr<const LoadedKernel>>;

// The library carries the package's id as its name; a package that has just one may name it freely.
fs::path find_library(const fs::path& folder, const std::string& id,
                      const std::string& repository) {
  if (const fs::path named = folder / (id + ".abi3.so"); fs::exists(named)) {
    return named;
  }
  std::vector<fs::path> libraries;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".so") {
      libraries.push_back(entry.path());
    }
  }
  if (libraries.size() != 1) {
    throw LoadError("kernel.loader", libraries.empty() ? "python-only" : "libraries",
                    fmt::format("`{}`: expected one native library in `{}`, got {}", repository,
                                folder.string(), libraries.size()),
                    libraries.empty() ? "this package is Python only (Triton, CuTe DSL …); there "
                                        "is nothing to load without Python"
                                      : "");
  }
  return libraries.front();
}

void verify_digest(const std::string& repository, const Resolution& resolution) {
  if (!resolution.metadata.digest) {
    warn(fmt::format(
        "[kernel.loader] `{}`: metadata.json has no digest; the files could not be verified",
        repository));
    return;
  }
  const auto violations = digest_violations(resolution.folder, *resolution.metadata.digest);
  if (!violations.empty()) {
    throw IntegrityError(
        "kernel.loader", "digest",
        fmt::format("`{}`: expected the published files in `{}`, got {} differences: {}",
                    repository, resolution.folder.string(), violations.size(),
                    fmt::join(violations, "; ")),
        "delete the folder and fetch the package again");
  }
}

// Kernel libraries need `libtorch.so`, an empty library whose only use is to need libtorch_cpu and
// libtorch_cuda. Ours, of the same soname, needs libtorch_cpu alone, so that a CPU process stays
// free of CUDA.
void open_libtorch_name() {
  static const bool opened = [] {
    if (dlopen("libtorch.so", RTLD_LAZY | RTLD_NOLOAD) != nullptr) {
      return true;
    }
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&PyModule_Create2), &info);
    const auto stub =
        fs::weakly_canonical(fs::path(info.dli_fname)).parent_path() / "graft_stub" / "libtorch.so";
    return dlopen(stub.c_str(), RTLD_LAZY | RTLD_GLOBAL) != nullptr;
  }();
  if (!opened) {
    warn(
        "[kernel.loader] graft_stub/libtorch.so is not beside libgraft.so; kernel libraries will "
        "pull CUDA into the process");
  }
}

std::vector<std::string> ops_of(const std::string& id) {
  std::vector<std::string> names;
  const std::string prefix = id + "::";
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames()) {
    if (op.name.starts_with(prefix)) {
      names.push_back(op.name.substr(prefix.size()));
    }
  }
  return names;
}

// PyTorch ends the process when one namespace is registered twice, so an id that is taken is found
// before `dlopen`. The very same file may be there already: opening it again runs nothing.
void check_id_is_free(const std::string& repository, const std::string& id,
                      const fs::path& library) {
  if (ops_of(id).empty()) {
    return;
  }
  if (void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD); handle != nullptr) {
    dlclose(handle);
    return;
  }
  throw LoadError(
      "kernel.loader", "id-taken",
      fmt::format("`{}`: expected an id of its own, but ops of `{}` are in the process already",
                  repository, id));
}

TrustQuestion trust_question(const std::string& repository, const Resolution& resolution) {
  TrustQuestion question;
  question.repository = repository;
  question.source = resolution.source;
  question.commit = resolution.commit;
  question.ref = resolution.ref;
  question.folder = resolution.folder;
  question.metadata = &resolution.metadata;
  return question;
}

// One digest means the same files: a branch that moved on without a change to this variant.
bool is_same(const LoadedKernel& loaded, const std::string& repository,
             const Resolution& resolution) {
  if (fs::equivalent(loaded.folder, resolution.folder) || loaded.repository != repository) {
    return fs::equivalent(loaded.folder, resolution.folder);
  }
  const auto& left = loaded.metadata.digest;
  const auto& right = resolution.metadata.digest;
  return left && right && left->algorithm == right->algorithm && left->files == right->files &&
         digest_violations(resolution.folder, *right).empty();
}

std::shared_ptr<const LoadedKernel> open_kernel(const std::string& repository,
                                                const Resolution& resolution,
                                                const TrustPolicy& trust,
                                                Dependencies dependencies) {
  const std::string& id = resolution.metadata.id;
  const fs::path library = find_library(resolution.folder, id, repository);
  verify_digest(repository, resolution);
  require_trusted(trust_question(repository, resolution), TrustStage::kLoad, trust);
  auto kernel = std::make_shared<LoadedKernel>();
  kernel->layers = read_layers(resolution.folder);
  check_elf(library);
  check_id_is_free(repository, id, library);
  open_libtorch_name();
  if (dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    throw LoadError(
        "kernel.loader", "dlopen",
        fmt::format("`{}`: expected a loadable library, got: {}", repository, dlerror()));
  }
  kernel->dependencies = std::move(dependencies);
  kernel->repository = repository;
  kernel->source = resolution.source;
  kernel->commit = resolution.commit;
  kernel->ref = resolution.ref;
  kernel->bytes_fetched = resolution.bytes_fetched;
  kernel->variant = resolution.variant;
  kernel->folder = resolution.folder;
  kernel->metadata = resolution.metadata;
  if (ops_of(id).empty()) {
    throw LoadError("kernel.loader", "no-ops",
                    fmt::format("`{}`: expected ops under `{}` in PyTorch's dispatcher, got none",
                                repository, id));
  }
  if (kernel->layers.empty()) {
    kernel->layers = published_layers(*kernel);
  }
  return kernel;
}

}  // namespace

std::vector<std::string> LoadedKernel::op_names() const { return ops_of(metadata.id); }

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
  auto kernel = open_kernel(repository, resolution, trust, std::move(dependencies));
  loaded.emplace(resolution.metadata.id, kernel);
  return kernel;
}

std::shared_ptr<const LoadedKernel> load(const std::string& repository,
                                         const Resolution& resolution) {
  return load(repository, resolution, TrustPolicy{}, {});
}

}  // namespace graft::kernel

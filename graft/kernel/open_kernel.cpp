#include "graft/kernel/open_kernel.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <set>

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/kernel/elf_check.h"
#include "graft/kernel/published_layers.h"
#include "graft/kernel/symbol_check.h"

// Kernel libraries carry an entry point for Python, which nobody calls here; one bound with `-z
// now` still wants the symbol that the entry point uses.
extern "C" __attribute__((visibility("default"), weak)) void* PyModule_Create2(void*, int) {
  return nullptr;
}

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMostNamed = 8;  // in an error's text

std::string some_of(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMostNamed);
  return fmt::format("{}{}", fmt::join(names.begin(), names.begin() + shown, ", "),
                     shown < names.size() ? fmt::format(" and {} more", names.size() - shown) : "");
}

// A constructor that throws ends the process: the loader's lock would never be given back. dlopen() is
// declared as never throwing, so that it has to be called by a pointer whose type does not say so.
void* open_library(const fs::path& library) noexcept {
  void* (*volatile const open)(const char*, int) = dlopen;
  return open(library.c_str(), RTLD_LAZY | RTLD_LOCAL);
}

using OpNames = std::set<std::string>;

OpNames all_ops() {
  OpNames names;
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames()) {
    names.insert(op.name);
  }
  return names;
}

// Packages whose library is in the process for good and may not be used: opening another copy would
// register its ops a second time, which ends the process.
std::map<std::string, std::exception_ptr>& refused_for_good() {
  static std::map<std::string, std::exception_ptr> refused;
  return refused;
}

// Throws when what the library registered is not what the package promised.
void check_ops(const LoadedKernel& kernel, const std::vector<std::string>& foreign) {
  const std::string expected = fmt::format("`{}`: expected ops under `{}` in PyTorch's dispatcher",
                                           kernel.repository, kernel.metadata.id);
  if (kernel.op_names().empty()) {
    throw LoadError(
        "kernel.loader", "no-ops",
        fmt::format("{}, got {}", expected, foreign.empty() ? "none" : some_of(foreign)));
  }
  if (!foreign.empty()) {
    throw LoadError("kernel.loader", "foreign-ops",
                    fmt::format("{} alone, got also {}", expected, some_of(foreign)));
  }
}

// Runs `open`, and returns the ops that came with it under another id than the package's.
std::vector<std::string> open_and_compare(const std::string& id,
                                          const std::function<void()>& open) {
  const OpNames before = all_ops();
  open();
  std::vector<std::string> foreign;
  for (const auto& name : all_ops()) {
    if (!before.contains(name) && !name.starts_with(id + "::")) {
      foreign.push_back(fmt::format("`{}`", name));
    }
  }
  return foreign;
}

}  // namespace

std::vector<std::string> LoadedKernel::op_names() const {
  std::vector<std::string> names;
  const std::string prefix = metadata.id + "::";
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames()) {
    if (op.name.starts_with(prefix)) {
      names.push_back(op.name.substr(prefix.size()));
    }
  }
  return names;
}

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
                    libraries.empty()
                        ? fmt::format("this package is Python only (Triton, CuTe DSL …); a layer "
                                      "of it is compiled once, where Python, torch and Triton are, "
                                      "with: graft kernels aot {}:LAYER --out FOLDER",
                                      repository)
                        : "");
  }
  return libraries.front();
}

bool is_open_already(const std::string& repository, const std::string& id,
                     const fs::path& library) {
  if (const auto refused = refused_for_good().find(id); refused != refused_for_good().end()) {
    std::rethrow_exception(refused->second);
  }
  LoadedKernel named;
  named.metadata.id = id;
  if (named.op_names().empty()) {
    return false;
  }
  if (void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD); handle != nullptr) {
    dlclose(handle);
    return true;
  }
  throw LoadError(
      "kernel.loader", "id-taken",
      fmt::format("`{}`: expected an id of its own, but ops of `{}` are in the process already",
                  repository, id));
}

namespace {

void check_symbols(const std::string& repository, const ElfFacts& facts) {
  if (const auto missing = missing_symbols(facts); !missing.empty()) {
    throw LoadError("kernel.elf", "symbols",
                    fmt::format("`{}`: expected a library that finds in this process what it "
                                "needs, got one that misses {}",
                                repository, some_of(missing)),
                    "the package was built for another PyTorch, C library or CUDA");
  }
}

}  // namespace

ElfFacts check_library(const std::string& repository, const std::string& id,
                       const SealedLibrary& library) {
  ElfFacts facts = check_elf(library.path(), library.file().string());
  const auto& entries = facts.entry_points;
  if (std::find(entries.begin(), entries.end(), id) == entries.end()) {
    throw LoadError(
        "kernel.elf", "entry",
        fmt::format(
            "`{}`: expected `PyInit_{}` in `{}`, got {}", repository, id, library.file().string(),
            entries.empty() ? "no entry point" : fmt::format("PyInit_{}", entries.front())));
  }
  check_symbols(repository, facts);
  return facts;
}

void check_compiled_library(const std::string& repository, const std::string& id,
                            const SealedLibrary& library) {
  const ElfFacts facts = check_elf(library.path(), library.file().string());
  check_symbols(repository, facts);
  check_unique_symbols(repository, id, facts);
}

void check_unique_symbols(const std::string& repository, const std::string& id,
                          const ElfFacts& facts) {
  if (const auto clashes = claim_unique_symbols(facts, id); !clashes.empty()) {
    throw LoadError("kernel.elf", "unique-symbols",
                    fmt::format("`{}`: expected data of its own, got symbols that the loader "
                                "would share with another kernel: {}",
                                repository, some_of(clashes)),
                    "its authors can build it with -fno-gnu-unique");
  }
}

std::shared_ptr<LoadedKernel> describe_kernel(const std::string& repository,
                                              const Resolution& resolution) {
  auto kernel = std::make_shared<LoadedKernel>();
  kernel->layers = read_layers(resolution.folder);
  kernel->repository = repository;
  kernel->source = resolution.source;
  kernel->commit = resolution.commit;
  kernel->ref = resolution.ref;
  kernel->bytes_fetched = resolution.bytes_fetched;
  kernel->variant = resolution.variant;
  kernel->folder = resolution.folder;
  kernel->metadata = resolution.metadata;
  return kernel;
}

void check_no_foreign_ops(const std::string& repository, const std::string& id,
                          const std::function<void()>& open) {
  LoadedKernel kernel;
  kernel.repository = repository;
  kernel.metadata.id = id;
  const auto foreign = open_and_compare(id, open);
  try {
    check_ops(kernel, foreign);
  } catch (const LoadError&) {
    refused_for_good()[id] = std::current_exception();
    throw;
  }
}

std::shared_ptr<LoadedKernel> open_kernel(const std::string& repository,
                                          const Resolution& resolution,
                                          const std::shared_ptr<const SealedLibrary>& library,
                                          bool is_open) {
  auto kernel = describe_kernel(repository, resolution);
  const auto open = [&] {
    if (is_open) {
      return;
    }
    if (open_library(library->path()) == nullptr) {
      throw LoadError(
          "kernel.loader", "dlopen",
          fmt::format("`{}`: expected a loadable library, got: {}", repository, dlerror()));
    }
    // Opened and never closed, so neither is the descriptor that its name holds.
    static std::vector<std::shared_ptr<const SealedLibrary>> opened;
    opened.push_back(library);
  };
  check_no_foreign_ops(repository, resolution.metadata.id, open);
  if (kernel->layers.empty()) {
    kernel->layers = published_layers(*kernel);
  }
  return kernel;
}

}  // namespace graft::kernel

#include "graft/kernel/symbol_check.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <mutex>
#include <string_view>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/warn.h"

namespace graft::kernel {

namespace {

// Kernel libraries need `libtorch.so`, an empty library whose only use is to need libtorch_cpu and
// libtorch_cuda. Ours, of the same soname, needs libtorch_cpu alone, so that a CPU process stays
// free of CUDA.
void open_libtorch_name() {
  static const bool opened = [] {
    if (dlopen("libtorch.so", RTLD_LAZY | RTLD_NOLOAD) != nullptr) {
      return true;
    }
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&missing_symbols), &info);
    const auto own = std::filesystem::weakly_canonical(info.dli_fname).parent_path();
    const auto stub = own / "graft_stub" / "libtorch.so";
    return dlopen(stub.c_str(), RTLD_LAZY | RTLD_GLOBAL) != nullptr;
  }();
  if (!opened) {
    warn(
        "[kernel.loader] graft_stub/libtorch.so is not beside libgraft.so; kernel libraries will "
        "pull CUDA into the process");
  }
}

bool is_found(void* scope, const UndefinedSymbol& symbol) {
  dlerror();
  if (symbol.version.empty()) {
    dlsym(scope, symbol.name.c_str());
  } else {
    dlvsym(scope, symbol.name.c_str(), symbol.version.c_str());
  }
  return dlerror() == nullptr;  // a symbol's value may be null
}

// PyTorch's own libraries have to be in the process: found beside graft they would bring CUDA into a
// process that does without.
void* open_needed(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  const bool is_torch = library.starts_with("libtorch") || library.starts_with("libc10");
  return handle != nullptr || is_torch ? handle : dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL);
}

// Namespaces whose unique symbols every library is meant to share, as mangled names spell them.
bool is_shared_by_design(std::string_view name) {
  constexpr std::array<std::string_view, 8> kNamespaces = {
      "St", "Sa", "Ss", "9__gnu_cxx", "10__cxxabiv1", "3c10", "2at", "5torch"};
  if (!name.starts_with("_Z")) {
    return false;
  }
  name.remove_prefix(2);
  for (const std::string_view part : {"GV", "TV", "TI", "TS", "Z", "N", "K"}) {
    if (name.starts_with(part)) {
      name.remove_prefix(part.size());
    }
  }
  return std::any_of(kNamespaces.begin(), kNamespaces.end(),
                     [&](std::string_view space) { return name.starts_with(space); });
}

}  // namespace

std::vector<std::string> missing_symbols(const ElfFacts& facts) {
  open_libtorch_name();
  std::vector<std::string> missing;
  std::vector<void*> scopes = {RTLD_DEFAULT};
  for (const auto& library : facts.needed) {
    // Never closed again: the kernel that needs them stays as well.
    if (void* handle = open_needed(library); handle != nullptr) {
      scopes.push_back(handle);
    } else {
      missing.push_back(fmt::format("library `{}`", library));
    }
  }
  const auto check = [&](const UndefinedSymbol& symbol) {
    if (std::none_of(scopes.begin(), scopes.end(),
                     [&](void* scope) { return is_found(scope, symbol); })) {
      missing.push_back(symbol.version.empty()
                            ? fmt::format("`{}`", symbol.name)
                            : fmt::format("`{}` of {}", symbol.name, symbol.version));
    }
  };
  std::for_each(facts.undefined.begin(), facts.undefined.end(), check);
  for (const auto& name : facts.undefined_python) {
    if (facts.binds_now) {
      check({name, ""});
    }
  }
  return missing;
}

std::vector<std::string> claim_unique_symbols(const ElfFacts& facts, const std::string& owner) {
  static std::mutex mutex;
  static std::map<std::string, std::string> owners;
  const std::lock_guard lock(mutex);
  std::vector<std::string> clashes;
  for (const auto& name : facts.unique) {
    const auto found = owners.find(name);
    if (found != owners.end() && found->second != owner) {
      clashes.push_back(fmt::format("`{}` of `{}`", name, found->second));
    }
  }
  for (const auto& name : facts.unique) {
    if (clashes.empty() && !is_shared_by_design(name)) {
      owners.emplace(name, owner);
    }
  }
  return clashes;
}

}  // namespace graft::kernel

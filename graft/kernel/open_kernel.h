// The last steps of loading a package: its sealed library is looked at, opened, and asked for its
// ops. Internal: load() is the way in, which verifies before; the canary's helper process is the
// other caller.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "graft/kernel/elf_check.h"
#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"
#include "graft/kernel/sealed_library.h"

namespace graft::kernel {

// The file of a variant folder that is its library.
// Throws   LoadError `kernel.loader.python-only`, `.libraries`.
std::filesystem::path find_library(const std::filesystem::path& folder, const std::string& id,
                                   const std::string& repository);

// Whether this very file is in the process already, e.g. opened by Python's client: opening it
// again would run nothing.
// Throws   what open_kernel() threw for that id after it had opened a library; LoadError
// `kernel.loader.id-taken` when ops of that id are there from another file: PyTorch ends the process
// when one namespace is registered twice.
bool is_open_already(const std::string& repository, const std::string& id,
                     const std::filesystem::path& library);

// Headers and symbols of the library, held against the package and the process.
// Throws   LoadError what check_elf() throws, `kernel.elf.entry` (no `PyInit_<id>`),
// `kernel.elf.symbols` naming what is missing.
ElfFacts check_library(const std::string& repository, const std::string& id,
                       const SealedLibrary& library);

// The same for a library of a compiled layer (compiled_layer.h), which has no entry point; its unique
// symbols are checked as well.
void check_compiled_library(const std::string& repository, const std::string& id,
                            const SealedLibrary& library);

// Throws   LoadError `kernel.elf.unique-symbols` where the library would share data with another
// kernel of the process.
void check_unique_symbols(const std::string& repository, const std::string& id,
                          const ElfFacts& facts);

// What is known of a package before it is opened, and the layers of its layers.json.
// Throws   FormatError for a broken layers.json.
std::shared_ptr<LoadedKernel> describe_kernel(const std::string& repository,
                                              const Resolution& resolution);

// Runs `open`, which brings the package's ops.
// Throws   LoadError `kernel.loader.no-ops`, `.foreign-ops`, for good; what `open` throws.
void check_no_foreign_ops(const std::string& repository, const std::string& id,
                          const std::function<void()>& open);

// Opens the library unless it is open already, and finds ops and layers.
// Throws   LoadError `kernel.loader.dlopen`, `.no-ops`, `.foreign-ops` (ops under an id that is not
// the package's); FormatError for a broken layers.json.
std::shared_ptr<LoadedKernel> open_kernel(const std::string& repository,
                                          const Resolution& resolution,
                                          const std::shared_ptr<const SealedLibrary>& library,
                                          bool is_open);

}  // namespace graft::kernel

// A look at a shared library before it is opened: opening runs its constructors.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace graft::kernel {

struct ElfFacts {
  std::vector<std::string> needed;            // DT_NEEDED
  bool has_runpath = false;                   // DT_RPATH or DT_RUNPATH
  bool binds_now = false;                     // DF_BIND_NOW, DF_1_NOW or DT_BIND_NOW
  std::vector<std::string> undefined_python;  // undefined CPython symbols (`Py…`, `_Py…`)
};

// Reads a library's headers with every offset checked.
// Throws   LoadError `kernel.elf.<reason>`: format (no ELF64 x86-64 shared object, or offsets
// outside the
//          file), executable-stack, needed (a path instead of a name), python (needs more of
//          CPython than PyModule_Create2).
ElfFacts check_elf(const std::filesystem::path& library);

}  // namespace graft::kernel

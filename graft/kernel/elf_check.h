// A look at a shared library before it is opened: opening runs its constructors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace graft::kernel {

struct ElfFacts {
  std::vector<std::string> needed;            // DT_NEEDED
  std::vector<std::string> runpath;           // entries of DT_RPATH and DT_RUNPATH
  bool binds_now = false;                     // DF_BIND_NOW, DF_1_NOW or DT_BIND_NOW
  uint64_t num_constructors = 0;              // functions that run when the library is opened
  std::vector<std::string> undefined_python;  // undefined CPython symbols (`Py…`, `_Py…`)
};

// Reads a library's headers as the dynamic loader does, with every offset checked.
// Throws   LoadError `kernel.elf.<reason>`:
//          format               no ELF64 x86-64 shared object, segments out of order or outside the
//                               file, offsets outside the file
//          executable-stack     asks for a stack that can be executed
//          writable-code        a segment that can be written and executed
//          text-relocations     code that the loader would have to write to
//          needed               a path instead of a name, or a library that kernels have no use for
//          runpath              a search path that depends on the working directory
//          python               needs more of CPython than PyModule_Create2
ElfFacts check_elf(const std::filesystem::path& library);

}  // namespace graft::kernel

// A look at a shared library before it is opened: opening runs its constructors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace graft::kernel {

// A symbol that another library has to bring, and the version that the linker saw it in.
struct UndefinedSymbol {
  std::string name;
  std::string version;  // `GLIBC_2.14`; empty: any
};

struct ElfFacts {
  std::vector<std::string> needed;            // DT_NEEDED
  std::vector<std::string> runpath;           // entries of DT_RPATH and DT_RUNPATH
  bool binds_now = false;                     // DF_BIND_NOW, DF_1_NOW or DT_BIND_NOW
  uint64_t num_constructors = 0;              // functions that run when the library is opened
  std::vector<std::string> constructors;      // their names, else `0x…`, as far as the file tells
  std::vector<std::string> undefined_python;  // undefined CPython symbols (`Py…`, `_Py…`)
  std::vector<UndefinedSymbol> undefined;     // all that must be there, weak ones left out
  std::vector<std::string> weak;              // undefined, and the library does without
  std::vector<std::string> unique;            // shared by every library of the process (GNU unique)
  std::vector<std::string> entry_points;      // what `PyInit_` stands before
  std::vector<std::string> symbol_versions;   // of other libraries: `GLIBC_2.28`, `GLIBCXX_3.4`
};

// Reads a library's headers and symbols as the dynamic loader does, with every offset checked.
//
// shown  the name that errors show instead of the file's own
// Throws   LoadError `kernel.elf.<reason>`:
//          format               no ELF64 x86-64 shared object, segments out of order or outside the
//                               file, offsets outside the file
//          executable-stack     asks for a stack that can be executed
//          writable-code        a segment that can be written and executed
//          text-relocations     code that the loader would have to write to
//          needed               a path instead of a name, or a library that kernels have no use for
//          runpath              a search path that depends on the working directory
//          python               needs more of CPython than PyModule_Create2
ElfFacts check_elf(const std::filesystem::path& library, const std::string& shown = "");

// Versions of symbols beyond what Hub kernels may ask for (manylinux_2_28: GLIBC 2.28, GLIBCXX
// 3.4.24, CXXABI 1.3.11), which older systems do not have.
std::vector<std::string> newer_symbol_versions(const ElfFacts& facts);

}  // namespace graft::kernel

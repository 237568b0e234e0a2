// Which functions of the system a library calls, for a person who decides whether to run it.
#pragma once

#include <string>
#include <vector>

#include "graft/kernel/elf_check.h"

namespace graft::kernel {

// Imported functions by what they reach, sorted. A kernel computes on memory that it is given, so
// each of these is worth a question. No proof of innocence: a library can ask the system without
// importing anything.
struct ImportReport {
  std::vector<std::string> files;      // open, read a folder, remove …
  std::vector<std::string> processes;  // start, signal, trace other processes
  std::vector<std::string> network;    // sockets, name look-up
  std::vector<std::string> code;       // load libraries, make memory executable, raw system calls

  bool empty() const {
    return files.empty() && processes.empty() && network.empty() && code.empty();
  }
};

ImportReport sensitive_imports(const ElfFacts& facts);

}  // namespace graft::kernel

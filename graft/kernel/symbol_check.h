// What a library wants from others, held against what the process offers, before it is opened.
#pragma once

#include <string>
#include <vector>

#include "graft/kernel/elf_check.h"

namespace graft::kernel {

// Every symbol (and version of it) that neither the process's global scope nor a library that
// `facts.needed` names brings, and every needed library that cannot be opened: what the dynamic
// loader would stop at, or, where it binds lazily, what would end the process at the first call.
// The one symbol of CPython is asked for only where it would be looked up at once.
// Opens the needed libraries that are not in the process yet; all are the system's, PyTorch's or
// CUDA's (check_elf).
std::vector<std::string> missing_symbols(const ElfFacts& facts);

// Remembers which library defines which unique symbol: the loader keeps one for the whole process,
// even across libraries opened in local scope, so that a second library would run on the first one's
// data. Returns the symbols that another library brought before; those of the C++ library and of
// PyTorch are meant to be shared. With clashes nothing is remembered. Thread-safe.
std::vector<std::string> claim_unique_symbols(const ElfFacts& facts, const std::string& owner);

}  // namespace graft::kernel

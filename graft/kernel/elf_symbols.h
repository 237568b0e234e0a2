// Symbols, versions and constructors of a library. Internal to the room.
#pragma once

#include "graft/kernel/elf_check.h"
#include "graft/kernel/elf_image.h"

namespace graft::kernel {

// Fills in what ElfFacts says of symbols, their versions and constructors.
// Throws   LoadError `kernel.elf.format`, `kernel.elf.python`.
void read_symbols(const ElfImage& image, ElfFacts& facts);

}  // namespace graft::kernel

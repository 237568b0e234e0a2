// Whatever bytes a library holds, the answer is its facts or a LoadError.
#include "graft/core/error.h"
#include "graft/io/fuzz_file.h"
#include "graft/kernel/elf_check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const graft::io::FuzzFile file(data, size);
  try {
    graft::kernel::check_elf(file.path());
  } catch (const graft::LoadError&) {
  }
  return 0;
}

// Every byte of every accepted tensor must be readable.
#include "graft/core/error.h"
#include "graft/io/fuzz_file.h"
#include "graft/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const graft::io::FuzzFile input(data, size);
  try {
    const auto file = graft::io::SafetensorsFile::open(input.path());
    unsigned sum = 0;
    for (const auto& tensor : file.tensors()) {
      for (const std::byte value : tensor.bytes) {
        sum += std::to_integer<unsigned>(value);
      }
      if (file.find(tensor.name) != &tensor) {
        __builtin_trap();
      }
    }
    volatile unsigned keep = sum;
    (void)keep;
  } catch (const graft::FormatError&) {
  }
  return 0;
}

// Every accepted tensor must unpack, and every typed getter must answer or refuse.
#include "graft/core/error.h"
#include "graft/io/dequantize.h"
#include "graft/io/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const graft::io::FuzzFile input(data, size);
  const auto refused = [](const auto& call) {
    try {
      call();
    } catch (const graft::FormatError&) {
    }
  };
  refused([&] {
    const auto file = graft::io::GgufFile::open(input.path());
    for (const auto& [key, value] : file.metadata()) {
      refused([&, &name = key] { file.integer(name); });
      refused([&, &name = key] { file.real(name); });
      refused([&, &name = key] { file.text(name); });
      refused([&, &name = key] { file.texts(name); });
      refused([&, &name = key] { file.integers(name); });
      refused([&, &name = key] { file.reals(name); });
    }
    for (const auto& tensor : file.tensors()) {
      std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
      graft::io::dequantize(tensor.type, tensor.bytes, std::span<float>(values));
    }
  });
  return 0;
}

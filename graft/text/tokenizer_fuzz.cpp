// Fuzz target: any bytes as tokenizer.json; what loads must encode and decode without a fault.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "graft/core/error.h"
#include "graft/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = graft::text::Tokenizer::from_json(input);
    tokenizer.decode(tokenizer.encode("a \xF0\x9F\x98\x80 \xFF 12 b\n"));
    tokenizer.decode(tokenizer.encode(input.substr(0, 256)), false);
  } catch (const graft::Error&) {
  }
  return 0;
}

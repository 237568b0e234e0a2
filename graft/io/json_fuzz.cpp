// Whatever parse_json accepts must survive being written and parsed again.
#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto value = graft::io::parse_json(text, "fuzz", "input");
    if (graft::io::parse_json(value.dump(), "fuzz", "input") != value ||
        graft::io::parse_ordered_json(text, "fuzz", "input").size() != value.size()) {
      __builtin_trap();
    }
  } catch (const graft::FormatError& error) {
    if (!graft::io::is_utf8(error.what())) {
      __builtin_trap();
    }
  }
  return 0;
}

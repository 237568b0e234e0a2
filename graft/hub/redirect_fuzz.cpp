// Any bytes as kernel-status.toml: a destination is a repository's name, or there is none.
#include <string_view>

#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/hub/redirect.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto redirect = graft::hub::parse_redirect(
        {reinterpret_cast<const char*>(data), size}, graft::hub::kStatusFile);
    if (!graft::hub::is_repo_id(redirect.destination)) {
      __builtin_trap();
    }
  } catch (const graft::FormatError&) {
  }
  return 0;
}

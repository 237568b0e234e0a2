// Any bytes as the policy file: read strictly or refused.
#include <string>

#include "graft/core/error.h"
#include "graft/trust/policy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    graft::trust::parse_policy(std::string(reinterpret_cast<const char*>(data), size), "policy.json");
  } catch (const graft::Error&) {
  }
  return 0;
}

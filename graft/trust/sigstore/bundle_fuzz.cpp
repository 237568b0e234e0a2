// A bundle from anywhere, verified against the root that it may name itself after: nothing may be
// accepted that was not signed, and nothing may break.
#include <fstream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/trust/sigstore/verify.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace graft::trust::sigstore;
  static const TrustedRoot root = [] {
    std::ifstream in("tests/data/trust/cases.json");
    return parse_trusted_root(nlohmann::json::parse(in).at("trusted_root").dump(), "root");
  }();
  try {
    const auto bundle =
        parse_bundle(std::string(reinterpret_cast<const char*>(data), size), "bundle");
    verify_bundle(bundle, "another file than the seeds are about", root);
    __builtin_trap();
  } catch (const graft::Error&) {
  }
  return 0;
}

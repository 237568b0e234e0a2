#include "graft/trust/decide.h"

namespace graft::trust {

const char* to_text(Reason reason) {
  constexpr const char* kTexts[] = {"embedded",
                                    "local",
                                    "allowed",
                                    "signed",
                                    "trusted-publisher",
                                    "allowed-before",
                                    "denied",
                                    "unknown-publisher",
                                    "not-asked",
                                    "foreign-files",
                                    "broken-signature",
                                    "wrong-signer",
                                    "no-signature",
                                    "signature-gone",
                                    "signer-changed",
                                    "not-this-commit",
                                    "rolled-back",
                                    "content-changed",
                                    "cycle",
                                    "too-far"};
  return kTexts[static_cast<size_t>(reason)];
}

}  // namespace graft::trust

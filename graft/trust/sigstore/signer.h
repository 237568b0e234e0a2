// Who signed, as the signer's certificate says it.
#pragma once

#include <string>

namespace graft::trust::sigstore {

// Empty where the certificate does not say.
struct Signer {
  std::string subject;            // e.g. the workflow's URI, or an e-mail address
  std::string issuer;             // who vouched for the subject (OpenID Connect)
  std::string source_repository;  // e.g. `https://github.com/org/repo`
  std::string source_ref;         // e.g. `refs/heads/main`
  std::string source_commit;
  std::string build_signer;  // workflow file and ref that signed
};

}  // namespace graft::trust::sigstore

// The signer's certificate: issued by an authority of the trusted root, valid at the time of the
// signature, written to a certificate log, made for signing code; and who it says the signer is.
#pragma once

#include <string>
#include <vector>

#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust::sigstore {

// Who signed, as the certificate says it. Empty where it does not say.
struct Signer {
  std::string subject;            // e.g. the workflow's URI, or an e-mail address
  std::string issuer;             // who vouched for the subject (OpenID Connect)
  std::string source_repository;  // e.g. `https://github.com/org/repo`
  std::string source_ref;         // e.g. `refs/heads/main`
  std::string source_commit;
  std::string build_signer;  // workflow file and ref that signed
};

// Who a certificate is for. A field whose encoding is broken, and issuers that contradict each
// other, throw IntegrityError `trust.signature.identity`.
Signer signer_of(const X509* certificate);

// Throws   IntegrityError `trust.signature.chain` when no authority of the root issued the
//          certificate or it was not valid at `time_s` (seconds since 1970);
//          `trust.signature.usage` when it is not for signing code;
//          `trust.signature.certificate-log` when no log of the root confirms that it was logged.
void check_certificate(X509* certificate, const std::vector<std::string>& intermediates,
                       int64_t time_s, const TrustedRoot& root);

}  // namespace graft::trust::sigstore

// The signer's certificate: issued by an authority of the trusted root, valid at the time of the
// signature, written to a certificate log, made for signing code; and who it says the signer is.
#pragma once

#include <string>
#include <vector>

#include "graft/trust/sigstore/signer.h"
#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust::sigstore {

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

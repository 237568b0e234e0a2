#include "graft/trust/sigstore/verify.h"

#include <vector>

#include "graft/core/error.h"
#include "graft/trust/encoding.h"
#include "graft/trust/sigstore/log_check.h"
#include "graft/trust/sigstore/timestamp_check.h"

namespace graft::trust::sigstore {

namespace {

[[noreturn]] void refuse(std::string_view reason, std::string_view message) {
  throw IntegrityError("trust.signature", reason, message);
}

// Times at which somebody who is trusted saw the signature. Only the first kind of entry is
// promised at a time; a promise is checked with the entry.
std::vector<int64_t> trusted_times(const Bundle& bundle, const TrustedRoot& root) {
  std::vector<int64_t> times;
  for (const std::string& response : bundle.timestamps) {
    times.push_back(verified_timestamp(response, bundle.signature, root));
  }
  if (!bundle.entry.promise.empty()) {
    if (bundle.entry.integrated_time_s == 0 || bundle.entry.version != "0.0.1") {
      refuse("time", "expected a promise with a time, for an entry of version 0.0.1");
    }
    times.push_back(bundle.entry.integrated_time_s);
  }
  if (times.empty()) {
    refuse("time", "expected a time that a log or an authority vouches for, got none");
  }
  return times;
}

}  // namespace

Verified verify_bundle(const Bundle& bundle, std::string_view content, const TrustedRoot& root) {
  const Certificate certificate = read_certificate(bundle.certificate);
  if (!certificate) {
    refuse("chain", "expected a certificate in the bundle, got other bytes");
  }
  const auto times = trusted_times(bundle, root);
  for (const int64_t time_s : times) {
    check_certificate(certificate.get(), bundle.intermediates, time_s, root);
  }
  const Log& log = log_of(bundle.entry, root);
  check_log_entry(bundle.entry, log);
  const std::string hash = sha256_bytes(content);
  if (!bundle.sha256.empty() && bundle.sha256 != hash) {
    refuse("content", "expected the file that the bundle names by its hash, got another");
  }
  if (!verifies_sha256(X509_get0_pubkey(certificate.get()), bundle.signature, hash)) {
    refuse("content", "expected a signature over this file, got one over another");
  }
  check_log_body(bundle.entry, hash, bundle.signature, bundle.certificate);
  return {signer_of(certificate.get()), times.front(), bundle.entry.log_index};
}

}  // namespace graft::trust::sigstore

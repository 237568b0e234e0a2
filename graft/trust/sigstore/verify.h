// Whether a Sigstore bundle proves that a file was signed, and by whom. Works offline: all that is
// needed is in the bundle and in the trusted root.
//
//   trusted time -> certificate: issued, valid then, logged -> log entry: in the tree, promised ->
//   signature over the file -> the entry speaks of this signature
#pragma once

#include <string>
#include <string_view>

#include "graft/trust/sigstore/bundle.h"
#include "graft/trust/sigstore/certificate_check.h"

namespace graft::trust::sigstore {

struct Verified {
  Signer signer;
  int64_t time_s = 0;  // when it was signed, seconds since 1970: as log or authority say
  uint64_t log_index = 0;
};

// Verifies the bundle over `content`. Who the signer may be is the caller's to judge.
// Throws   IntegrityError `trust.signature.<reason>` naming the step that failed; FormatError for a
//          broken log entry.
// Source   Sigstore's client specification, section 4; compared with sigstore-python 4.5.1.
Verified verify_bundle(const Bundle& bundle, std::string_view content, const TrustedRoot& root);

}  // namespace graft::trust::sigstore

// Timestamps of an authority (RFC 3161) over a signature.
#pragma once

#include <cstdint>
#include <string_view>

#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust::sigstore {

// The time at which an authority of the trusted root saw the signature, in seconds since 1970.
//
// response   DER of the authority's response
// Throws   IntegrityError `trust.signature.timestamp`.
int64_t verified_timestamp(std::string_view response, std::string_view signature,
                           const TrustedRoot& root);

}  // namespace graft::trust::sigstore

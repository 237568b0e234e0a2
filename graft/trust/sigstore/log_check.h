// The entry of a transparency log: that it is in the tree whose root the log signed, that the log
// promised it at that time, and that it speaks of this very signature.
#pragma once

#include <string_view>

#include "graft/trust/sigstore/bundle.h"
#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust::sigstore {

// The log of the trusted root that an entry names.
// Throws   IntegrityError `trust.signature.log` when there is none.
const Log& log_of(const LogEntry& entry, const TrustedRoot& root);

// Throws   IntegrityError `trust.signature.inclusion` (the proof does not lead to the root hash),
//          `.checkpoint` (the root hash is not what the log signed), `.promise`, `.log-time` (the
//          log's key was not valid then).
void check_log_entry(const LogEntry& entry, const Log& log);

// Whether the entry's body is about this hash, signature and certificate and nothing else.
//
// sha256       of the file, 32 bytes
// certificate  DER
// Throws   IntegrityError `trust.signature.entry`; FormatError `trust.log-entry.<reason>`.
void check_log_body(const LogEntry& entry, std::string_view sha256, std::string_view signature,
                    std::string_view certificate);

// The root hash that a proof leads to from a leaf (RFC 6962, 2.1.1); empty when the number of hashes
// does not fit the place and the size of the tree.
std::string root_hash_of(std::string_view leaf, const InclusionProof& proof);

}  // namespace graft::trust::sigstore

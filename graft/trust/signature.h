// The signature beside a package's metadata.json (`metadata.json.sigstore`), and what it proves.
#pragma once

#include <filesystem>
#include <string>

#include "graft/trust/sigstore/verify.h"

namespace graft::trust {

enum class SignatureState {
  kValid,
  kAbsent,
  kBroken,     // does not verify, or cannot be read
  kUnchecked,  // no trusted root is here
};

struct SignatureCheck {
  SignatureState state = SignatureState::kAbsent;
  sigstore::Verified verified;  // of kValid
  std::string problem;          // of kBroken and kUnchecked
  // SHA-256 as 64 digits: of metadata.json, which holds the hashes of all other files; where it holds
  // none, of the names and contents of all files.
  std::string digest;
  // The workflow that signed, else the address; empty unless kValid.
  std::string signer() const;
};

// Reads metadata.json once and verifies the signature over these very bytes, unparsed.
//
// root_file   of the trusted root; empty: none is here
// Throws   NotFound `trust.signature.metadata`; FormatError `trust.root.<reason>`.
SignatureCheck check_signature(const std::filesystem::path& folder,
                               const std::filesystem::path& root_file);

}  // namespace graft::trust

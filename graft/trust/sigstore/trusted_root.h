// The keys and certificates that a Sigstore instance is known by (`trusted_root.json`): who issues
// certificates, which logs they are written to, who gives the time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "graft/trust/sigstore/public_key.h"

namespace graft::trust::sigstore {

struct Log {
  std::string base_url;
  std::string id;  // 32 bytes
  PublicKey key;
  TimeRange valid_for;
};

// Certificates from the one that signs to the root.
struct Authority {
  std::vector<Certificate> chain;
  TimeRange valid_for;
};

struct TrustedRoot {
  std::vector<Log> transparency_logs;
  std::vector<Log> certificate_logs;
  std::vector<Authority> certificate_authorities;
  std::vector<Authority> timestamp_authorities;
};

// Reads a root of format 0.1 or 0.2. Logs whose keys are of a kind that is not known are left out.
// Throws   FormatError `trust.root.<reason>`.
TrustedRoot parse_trusted_root(std::string text, const std::string& file);

// Until when the root vouches for something new: from then on it knows no authority, or no log of
// one of the kinds, whose time has not passed. Nothing where that has no end. Signatures from before
// stay valid.
std::optional<int64_t> usable_until_s(const TrustedRoot& root);

// GRAFT_TRUSTED_ROOT, else `share/graft/sigstore/trusted_root.json` beside the library's own folder;
// empty when there is none.
std::filesystem::path trusted_root_file();

}  // namespace graft::trust::sigstore

// A Sigstore bundle: what proves that a file was signed, in one JSON document (`*.sigstore`).
// Formats 0.1 to 0.3, with a certificate and a signature over the file itself; in-toto envelopes and
// bare keys are none that kernel packages carry.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft::trust::sigstore {

// All texts hold raw bytes.
struct InclusionProof {
  uint64_t log_index = 0;  // in the tree that the proof is about
  uint64_t tree_size = 0;
  std::string root_hash;
  std::vector<std::string> hashes;  // from the leaf upwards
  std::string checkpoint;           // the signed note that vouches for the root hash
};

struct LogEntry {
  uint64_t log_index = 0;
  std::string log_id;
  std::string kind;
  std::string version;
  int64_t integrated_time_s = 0;  // 0: none
  std::string promise;            // the log's signature over this entry and its time; empty: none
  InclusionProof proof;
  std::string body;  // JSON, as the log hashes it
};

struct Bundle {
  std::string certificate;                 // DER of the signer's certificate
  std::vector<std::string> intermediates;  // DER; formats before 0.3 alone
  LogEntry entry;
  std::vector<std::string> timestamps;  // RFC 3161 responses, DER
  std::string signature;
  std::string sha256;  // of the file, as the bundle says it; empty: not said
};

// Reads a bundle of at most 1 MiB.
// Throws   FormatError `trust.bundle.<reason>` naming file, line and key.
Bundle parse_bundle(std::string text, const std::string& file);

}  // namespace graft::trust::sigstore

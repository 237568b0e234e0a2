#include "graft/trust/sigstore/log_check.h"

#include <bit>

#include <fmt/format.h>
#include <openssl/pem.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/trust/encoding.h"
#include "graft/trust/strict_object.h"

namespace graft::trust::sigstore {

namespace {

constexpr size_t kMaxBodyBytes = 64 << 10;
constexpr size_t kKeyHintBytes = 4;
constexpr std::string_view kDash = "\xE2\x80\x94 ";  // an em dash begins each signature of a note

[[noreturn]] void refuse(std::string_view reason, const std::string& message) {
  throw IntegrityError("trust.signature", reason, message);
}

std::string hash_children(std::string_view left, std::string_view right) {
  return sha256_bytes(fmt::format("\x01{}{}", left, right));
}

struct NoteSignature {
  std::string_view name;
  std::string bytes;  // four bytes that hint at the key, then the signature
};

// A signed note: text that ends with a newline, an empty line, one signature a line.
struct Note {
  std::string_view text;
  std::vector<NoteSignature> signatures;
};

std::optional<NoteSignature> read_signature(std::string_view line) {
  if (!line.starts_with(kDash)) {
    return std::nullopt;
  }
  line.remove_prefix(kDash.size());
  const size_t space = line.find(' ');
  if (space == 0 || space == std::string_view::npos) {
    return std::nullopt;
  }
  auto bytes = decode_base64(line.substr(space + 1));
  if (!bytes || bytes->size() <= kKeyHintBytes) {
    return std::nullopt;
  }
  return NoteSignature{line.substr(0, space), *std::move(bytes)};
}

std::optional<Note> read_note(std::string_view envelope) {
  const size_t blank = envelope.find("\n\n");
  if (blank == std::string_view::npos || !envelope.ends_with('\n')) {
    return std::nullopt;
  }
  Note note{envelope.substr(0, blank + 1), {}};
  for (std::string_view rest = envelope.substr(blank + 2); !rest.empty();) {
    const size_t end = rest.find('\n');
    auto signature = read_signature(rest.substr(0, end));
    if (!signature) {
      return std::nullopt;
    }
    note.signatures.push_back(*std::move(signature));
    rest.remove_prefix(end + 1);
  }
  return note;
}

// The next line of a text, taken off it.
std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

void check_checkpoint(const LogEntry& entry, const Log& log) {
  const auto note = read_note(entry.proof.checkpoint);
  if (!note) {
    refuse("checkpoint", "expected a signed note, got another text");
  }
  std::string_view rest = note->text;
  const std::string_view origin = take_line(rest);
  const std::string_view size = take_line(rest);
  const auto root_hash = decode_base64(take_line(rest));
  if (origin.empty() || size != std::to_string(entry.proof.tree_size) || !root_hash ||
      *root_hash != entry.proof.root_hash) {
    refuse("checkpoint", "expected the size and the root hash of the proof, got others");
  }
  for (const NoteSignature& signature : note->signatures) {
    const std::string_view bytes = signature.bytes;
    const bool is_origin =
        origin == signature.name || origin.starts_with(fmt::format("{} - ", signature.name));
    if (is_origin && bytes.substr(0, kKeyHintBytes) == log.id.substr(0, kKeyHintBytes)) {
      if (!log.key.verifies(bytes.substr(kKeyHintBytes), note->text)) {
        refuse("checkpoint", "expected a checkpoint that the log signed, got a wrong signature");
      }
      return;
    }
  }
  refuse("checkpoint", "expected a signature of the log under the checkpoint, got none");
}

// The promise is made over this JSON, keys in order, nothing between (RFC 8785).
std::string promised_bytes(const LogEntry& entry) {
  return fmt::format(R"({{"body":"{}","integratedTime":{},"logID":"{}","logIndex":{}}})",
                     encode_base64(entry.body), entry.integrated_time_s, to_hex(entry.log_id),
                     entry.log_index);
}

// DER of the one certificate in a PEM text.
std::string der_of_pem(const std::string& pem) {
  const std::unique_ptr<BIO, Freed<BIO, BIO_free_all>> in(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  const Certificate certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
  return certificate ? der_of(certificate.get()) : "";
}

struct Recorded {
  std::string sha256;
  std::string signature;
  std::string certificate;
};

Recorded read_body_1(const StrictObject& spec) {
  const auto hash = spec.object("data", {"hash"}).object("hash", {"algorithm", "value"});
  const auto signature = spec.object("signature", {"content", "publicKey"});
  if (hash.text("algorithm") != "sha256") {
    hash.fail("value", "algorithm", "expected sha256");
  }
  const auto key = signature.object("publicKey", {"content"});
  return {hash.text("value"), signature.bytes("content"), der_of_pem(key.bytes("content"))};
}

Recorded read_body_2(const StrictObject& spec) {
  const auto record = spec.object("hashedRekordV002", {"data", "signature"});
  const auto data = record.object("data", {"algorithm", "digest"});
  const auto signature = record.object("signature", {"content", "verifier"});
  if (data.text("algorithm") != "SHA2_256") {
    data.fail("value", "algorithm", "expected SHA2_256");
  }
  const auto verifier = signature.object("verifier", {"keyDetails", "x509Certificate"});
  return {to_hex(data.bytes("digest")), signature.bytes("content"),
          verifier.object("x509Certificate", {"rawBytes"}).bytes("rawBytes")};
}

}  // namespace

const Log& log_of(const LogEntry& entry, const TrustedRoot& root) {
  for (const Log& log : root.transparency_logs) {
    if (log.id == entry.log_id) {
      return log;
    }
  }
  refuse("log",
         fmt::format("expected a log of the trusted root, got the log {}", to_hex(entry.log_id)));
}

std::string root_hash_of(std::string_view leaf, const InclusionProof& proof) {
  // Below `inner` levels the paths of this leaf and of the last one differ; above, only hashes to
  // the left are left.
  const auto inner = static_cast<size_t>(std::bit_width(proof.log_index ^ (proof.tree_size - 1)));
  const auto border =
      inner >= 64 ? 0 : static_cast<size_t>(std::popcount(proof.log_index >> inner));
  if (proof.hashes.size() != inner + border) {
    return "";
  }
  std::string hash = sha256_bytes(fmt::format("{}{}", std::string_view("\0", 1), leaf));
  for (size_t i = 0; i < proof.hashes.size(); ++i) {
    const bool is_left = i < inner && (proof.log_index >> i & 1) == 0;
    hash = is_left ? hash_children(hash, proof.hashes[i]) : hash_children(proof.hashes[i], hash);
  }
  return hash;
}

void check_log_entry(const LogEntry& entry, const Log& log) {
  if (root_hash_of(entry.body, entry.proof) != entry.proof.root_hash) {
    refuse("inclusion", "expected a proof that leads to its root hash, got one that does not");
  }
  check_checkpoint(entry, log);
  if (entry.promise.empty()) {
    if (entry.log_index != entry.proof.log_index) {
      refuse("inclusion", "expected one place in the log, got two");
    }
    return;
  }
  if (!log.key.verifies(entry.promise, promised_bytes(entry))) {
    refuse("promise", "expected the log's promise over this entry and its time, got another");
  }
  if (!log.valid_for.holds(entry.integrated_time_s)) {
    refuse("log-time", "expected an entry of the time in which the log's key was valid");
  }
}

void check_log_body(const LogEntry& entry, std::string_view sha256, std::string_view signature,
                    std::string_view certificate) {
  if (entry.kind != "hashedrekord" || (entry.version != "0.0.1" && entry.version != "0.0.2")) {
    refuse("entry", fmt::format("expected an entry hashedrekord 0.0.1 or 0.0.2, got {} {}",
                                io::excerpt(entry.kind), io::excerpt(entry.version)));
  }
  const StrictDocument document(entry.body, "trust.log-entry", "log entry", kMaxBodyBytes);
  const StrictObject body(document, {"apiVersion", "kind", "spec"});
  const bool first = entry.version == "0.0.1";
  const Recorded recorded = first ? read_body_1(body.object("spec", {"data", "signature"}))
                                  : read_body_2(body.object("spec", {"hashedRekordV002"}));
  if (body.text("apiVersion") != entry.version || body.text("kind") != entry.kind ||
      recorded.sha256 != to_hex(sha256) || recorded.signature != signature ||
      recorded.certificate != certificate) {
    refuse("entry", "expected a log entry about this file, signature and certificate, got another");
  }
}

}  // namespace graft::trust::sigstore

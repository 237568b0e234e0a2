#include "graft/trust/sigstore/bundle.h"

#include <fmt/format.h>

#include "graft/io/excerpt.h"
#include "graft/trust/strict_object.h"

namespace graft::trust::sigstore {

namespace {

constexpr size_t kMaxBundleBytes = 1 << 20;
constexpr size_t kMaxHashes = 64;  // of a proof: levels of the largest tree that can be counted
constexpr size_t kMaxTimestamps = 32;
constexpr size_t kMaxIntermediates = 8;
constexpr size_t kHashBytes = 32;

enum class Format { k01, k02, k03 };

Format format_of(const StrictObject& bundle) {
  const std::string type = bundle.text("mediaType");
  if (type == "application/vnd.dev.sigstore.bundle+json;version=0.1") {
    return Format::k01;
  }
  if (type == "application/vnd.dev.sigstore.bundle+json;version=0.2") {
    return Format::k02;
  }
  if (type != "application/vnd.dev.sigstore.bundle+json;version=0.3" &&
      type != "application/vnd.dev.sigstore.bundle.v0.3+json") {
    bundle.fail("media-type", "mediaType",
                fmt::format("expected a bundle of format 0.1 to 0.3, got `{}`", io::excerpt(type)));
  }
  return Format::k03;
}

void read_certificates(const StrictObject& material, Format format, Bundle& bundle) {
  if (material.has("publicKey")) {
    material.fail("public-key", "publicKey", "expected a certificate, got a bare key");
  }
  if (format == Format::k03) {
    bundle.certificate = material.object("certificate", {"rawBytes"}).bytes("rawBytes");
    return;
  }
  const auto chain = material.object("x509CertificateChain", {"certificates"});
  const auto certificates = chain.objects("certificates", {"rawBytes"});
  if (certificates.empty() || certificates.size() > 1 + kMaxIntermediates) {
    chain.fail("chain", "certificates",
               fmt::format("expected 1 to {} certificates, got {}", 1 + kMaxIntermediates,
                           certificates.size()));
  }
  bundle.certificate = certificates[0].bytes("rawBytes");
  for (size_t i = 1; i < certificates.size(); ++i) {
    bundle.intermediates.push_back(certificates[i].bytes("rawBytes"));
  }
}

InclusionProof read_proof(const StrictObject& entry) {
  const auto object =
      entry.object("inclusionProof", {"logIndex", "rootHash", "treeSize", "hashes", "checkpoint"});
  InclusionProof proof{
      object.decimal("logIndex"), object.decimal("treeSize"), object.bytes("rootHash"),
      object.has("hashes") ? object.bytes_list("hashes") : std::vector<std::string>{},
      object.object("checkpoint", {"envelope"}).text("envelope")};
  if (proof.log_index >= proof.tree_size) {
    object.fail("proof", "logIndex", "expected a place inside the tree");
  }
  bool whole = proof.root_hash.size() == kHashBytes && proof.hashes.size() <= kMaxHashes;
  for (const auto& hash : proof.hashes) {
    whole = whole && hash.size() == kHashBytes;
  }
  if (!whole) {
    object.fail("proof", "hashes", "expected at most 64 hashes of 32 bytes each");
  }
  return proof;
}

LogEntry read_entry(const StrictObject& material) {
  const auto entries =
      material.objects("tlogEntries", {"logIndex", "logId", "kindVersion", "integratedTime",
                                       "inclusionPromise", "inclusionProof", "canonicalizedBody"});
  if (entries.size() != 1) {
    material.fail("entries", "tlogEntries",
                  fmt::format("expected one log entry, got {}", entries.size()));
  }
  const StrictObject& object = entries[0];
  LogEntry entry;
  // Protobuf's JSON leaves out what is zero.
  entry.log_index = object.has("logIndex") ? object.decimal("logIndex") : 0;
  entry.log_id = object.object("logId", {"keyId"}).bytes("keyId");
  const auto kind = object.object("kindVersion", {"kind", "version"});
  entry.kind = kind.text("kind");
  entry.version = kind.text("version");
  if (object.has("integratedTime")) {
    entry.integrated_time_s = static_cast<int64_t>(object.decimal("integratedTime"));
  }
  if (object.has("inclusionPromise")) {
    entry.promise =
        object.object("inclusionPromise", {"signedEntryTimestamp"}).bytes("signedEntryTimestamp");
  }
  entry.proof = read_proof(object);
  entry.body = object.bytes("canonicalizedBody");
  return entry;
}

std::vector<std::string> read_timestamps(const StrictObject& material) {
  std::vector<std::string> timestamps;
  if (!material.has("timestampVerificationData")) {
    return timestamps;
  }
  const auto data = material.object("timestampVerificationData", {"rfc3161Timestamps"});
  if (!data.has("rfc3161Timestamps")) {
    return timestamps;
  }
  for (const auto& item : data.objects("rfc3161Timestamps", {"signedTimestamp"})) {
    timestamps.push_back(item.bytes("signedTimestamp"));
  }
  if (timestamps.size() > kMaxTimestamps) {
    data.fail("timestamps", "rfc3161Timestamps",
              fmt::format("expected at most {}, got {}", kMaxTimestamps, timestamps.size()));
  }
  return timestamps;
}

}  // namespace

Bundle parse_bundle(std::string text, const std::string& file) {
  const StrictDocument document(std::move(text), "trust.bundle", file, kMaxBundleBytes);
  const StrictObject root(
      document, {"mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope"});
  const Format format = format_of(root);
  if (root.has("dsseEnvelope")) {
    root.fail("envelope", "dsseEnvelope",
              "expected a signature over the file itself, got an in-toto envelope");
  }
  const auto material =
      root.object("verificationMaterial", {"certificate", "x509CertificateChain", "publicKey",
                                           "tlogEntries", "timestampVerificationData"});
  Bundle bundle;
  read_certificates(material, format, bundle);
  bundle.entry = read_entry(material);
  bundle.timestamps = read_timestamps(material);
  if (bundle.entry.promise.empty() && (format == Format::k01 || bundle.timestamps.empty())) {
    material.fail("time", "tlogEntries",
                  "expected the log's promise (signedEntryTimestamp) or a timestamp, got neither");
  }
  const auto message = root.object("messageSignature", {"messageDigest", "signature"});
  bundle.signature = message.bytes("signature");
  if (message.has("messageDigest")) {
    const auto digest = message.object("messageDigest", {"algorithm", "digest"});
    if (digest.text("algorithm") != "SHA2_256") {
      digest.fail("digest", "algorithm", "expected SHA2_256");
    }
    bundle.sha256 = digest.bytes("digest");
    if (bundle.sha256.size() != kHashBytes) {
      digest.fail("digest", "digest", "expected 32 bytes");
    }
  }
  return bundle;
}

}  // namespace graft::trust::sigstore

// Public keys of logs and certificates, and the handles of OpenSSL that this folder shares.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <openssl/evp.h>
#include <openssl/x509.h>

namespace graft::trust::sigstore {

template <typename T, void (*kFree)(T*)>
struct Freed {
  void operator()(T* value) const { kFree(value); }
};
using Certificate = std::unique_ptr<X509, Freed<X509, X509_free>>;
using KeyHandle = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY, EVP_PKEY_free>>;

// A span of time in seconds since 1970, both ends inside.
struct TimeRange {
  int64_t start_s = 0;
  std::optional<int64_t> end_s;
  bool holds(int64_t time_s) const { return time_s >= start_s && (!end_s || time_s <= *end_s); }
};

// A key that signs logs, with the one scheme that it is used for.
class PublicKey {
 public:
  // der     SubjectPublicKeyInfo
  // scheme  Sigstore's name, e.g. `PKIX_ECDSA_P256_SHA_256`, `PKIX_ED25519`
  // Returns nothing for a key that cannot be read, a scheme that is not known, or one that is for
  // another kind of key.
  static std::optional<PublicKey> read(std::string_view der, std::string_view scheme);

  bool verifies(std::string_view signature, std::string_view data) const;
  // SHA-256 of the SubjectPublicKeyInfo: the id of a log that has this key.
  const std::string& id() const { return id_; }

 private:
  KeyHandle key_;
  const EVP_MD* hash_ = nullptr;  // none: the scheme hashes by itself
  std::string id_;
};

// Whether an elliptic-curve key signed a SHA-256 hash (32 bytes). False for other kinds of keys.
bool verifies_sha256(EVP_PKEY* key, std::string_view signature, std::string_view hash);

// Reads one certificate; nothing when it is none or bytes follow.
Certificate read_certificate(std::string_view der);
std::string der_of(const X509* certificate);
// SHA-256 of the certificate's SubjectPublicKeyInfo.
std::string key_id_of(const X509* certificate);

}  // namespace graft::trust::sigstore

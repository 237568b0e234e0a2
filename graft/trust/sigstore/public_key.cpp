#include "graft/trust/sigstore/public_key.h"

#include <array>

#include <openssl/ec.h>
#include <openssl/err.h>

#include "graft/trust/encoding.h"

namespace graft::trust::sigstore {

namespace {

using DigestContext = std::unique_ptr<EVP_MD_CTX, Freed<EVP_MD_CTX, EVP_MD_CTX_free>>;
using KeyContext = std::unique_ptr<EVP_PKEY_CTX, Freed<EVP_PKEY_CTX, EVP_PKEY_CTX_free>>;

struct Scheme {
  std::string_view name;
  int key_type;
  const char* group;        // of elliptic curves, else none
  const EVP_MD* (*hash)();  // none for Ed25519
  int bits;                 // of RSA, else 0
};

constexpr std::array kSchemes = {
    Scheme{"PKIX_ECDSA_P256_SHA_256", EVP_PKEY_EC, "prime256v1", EVP_sha256, 0},
    Scheme{"PKIX_ECDSA_P384_SHA_384", EVP_PKEY_EC, "secp384r1", EVP_sha384, 0},
    Scheme{"PKIX_ECDSA_P521_SHA_512", EVP_PKEY_EC, "secp521r1", EVP_sha512, 0},
    Scheme{"PKIX_ED25519", EVP_PKEY_ED25519, nullptr, nullptr, 0},
    Scheme{"PKIX_RSA_PKCS1V15_2048_SHA256", EVP_PKEY_RSA, nullptr, EVP_sha256, 2048},
    Scheme{"PKIX_RSA_PKCS1V15_3072_SHA256", EVP_PKEY_RSA, nullptr, EVP_sha256, 3072},
    Scheme{"PKIX_RSA_PKCS1V15_4096_SHA256", EVP_PKEY_RSA, nullptr, EVP_sha256, 4096},
};

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

std::string group_of(EVP_PKEY* key) {
  std::array<char, 64> name{};
  size_t size = 0;
  return EVP_PKEY_get_group_name(key, name.data(), name.size(), &size) == 1 ? name.data() : "";
}

}  // namespace

std::optional<PublicKey> PublicKey::read(std::string_view der, std::string_view scheme) {
  const unsigned char* at = bytes_of(der);
  PublicKey result;
  result.key_.reset(d2i_PUBKEY(nullptr, &at, static_cast<long>(der.size())));
  ERR_clear_error();
  if (!result.key_ || at != bytes_of(der) + der.size()) {
    return std::nullopt;
  }
  for (const Scheme& known : kSchemes) {
    if (known.name == scheme && EVP_PKEY_get_base_id(result.key_.get()) == known.key_type &&
        (known.group == nullptr || group_of(result.key_.get()) == known.group) &&
        (known.bits == 0 || EVP_PKEY_get_bits(result.key_.get()) == known.bits)) {
      result.hash_ = known.hash == nullptr ? nullptr : known.hash();
      result.id_ = sha256_bytes(der);
      return result;
    }
  }
  return std::nullopt;
}

bool PublicKey::verifies(std::string_view signature, std::string_view data) const {
  const DigestContext context(EVP_MD_CTX_new());
  const bool good = EVP_DigestVerifyInit(context.get(), nullptr, hash_, nullptr, key_.get()) == 1 &&
                    EVP_DigestVerify(context.get(), bytes_of(signature), signature.size(),
                                     bytes_of(data), data.size()) == 1;
  ERR_clear_error();
  return good;
}

bool verifies_sha256(EVP_PKEY* key, std::string_view signature, std::string_view hash) {
  if (key == nullptr || EVP_PKEY_get_base_id(key) != EVP_PKEY_EC) {
    return false;
  }
  const KeyContext context(EVP_PKEY_CTX_new(key, nullptr));
  const bool good = EVP_PKEY_verify_init(context.get()) == 1 &&
                    EVP_PKEY_CTX_set_signature_md(context.get(), EVP_sha256()) == 1 &&
                    EVP_PKEY_verify(context.get(), bytes_of(signature), signature.size(),
                                    bytes_of(hash), hash.size()) == 1;
  ERR_clear_error();
  return good;
}

Certificate read_certificate(std::string_view der) {
  const unsigned char* at = bytes_of(der);
  Certificate certificate(d2i_X509(nullptr, &at, static_cast<long>(der.size())));
  ERR_clear_error();
  return certificate && at == bytes_of(der) + der.size() ? std::move(certificate) : nullptr;
}

std::string der_of(const X509* certificate) {
  unsigned char* bytes = nullptr;
  const int size = i2d_X509(certificate, &bytes);
  std::string der(reinterpret_cast<char*>(bytes), size < 0 ? 0 : static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return der;
}

std::string key_id_of(const X509* certificate) {
  unsigned char* bytes = nullptr;
  const int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &bytes);
  const std::string der(reinterpret_cast<char*>(bytes), size < 0 ? 0 : static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return sha256_bytes(der);
}

}  // namespace graft::trust::sigstore

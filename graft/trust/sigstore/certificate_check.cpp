#include "graft/trust/sigstore/certificate_check.h"

#include <algorithm>

#include <fmt/format.h>
#include <openssl/asn1.h>
#include <openssl/ct.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>

#include "graft/core/error.h"

namespace graft::trust::sigstore {

namespace {

using Store = std::unique_ptr<X509_STORE, Freed<X509_STORE, X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Freed<X509_STORE_CTX, X509_STORE_CTX_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Freed<GENERAL_NAMES, GENERAL_NAMES_free>>;
using ScTimestamps = std::unique_ptr<STACK_OF(SCT), Freed<STACK_OF(SCT), SCT_LIST_free>>;
using Object = std::unique_ptr<ASN1_OBJECT, Freed<ASN1_OBJECT, ASN1_OBJECT_free>>;

struct FreeStack {
  void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }
};
using Stack = std::unique_ptr<STACK_OF(X509), FreeStack>;  // does not own the certificates

// Names of the claims that Fulcio writes into certificates, below 1.3.6.1.4.1.57264.1.
constexpr char kIssuer[] = "1.3.6.1.4.1.57264.1.1";
constexpr char kIssuerV2[] = "1.3.6.1.4.1.57264.1.8";
constexpr char kBuildSigner[] = "1.3.6.1.4.1.57264.1.9";
constexpr char kSourceRepository[] = "1.3.6.1.4.1.57264.1.12";
constexpr char kSourceCommit[] = "1.3.6.1.4.1.57264.1.13";
constexpr char kSourceRef[] = "1.3.6.1.4.1.57264.1.14";

std::string text_of(const ASN1_STRING* value) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
          static_cast<size_t>(ASN1_STRING_length(value))};
}

[[noreturn]] void refuse(std::string_view reason, const std::string& message) {
  throw IntegrityError("trust.signature", reason, message);
}

// The raw value of an extension; empty when the certificate has none of this name.
std::string extension(const X509* certificate, const char* name) {
  const Object object(OBJ_txt2obj(name, /*no_name=*/1));
  const int at = X509_get_ext_by_OBJ(certificate, object.get(), -1);
  if (at < 0) {
    return "";
  }
  if (X509_get_ext_by_OBJ(certificate, object.get(), at) >= 0) {
    refuse("identity", fmt::format("expected extension {} once, got it twice", name));
  }
  return text_of(X509_EXTENSION_get_data(X509_get_ext(certificate, at)));
}

// The value of an extension that is a UTF8String in DER.
std::string text_extension(const X509* certificate, const char* name) {
  const std::string der = extension(certificate, name);
  if (der.empty()) {
    return "";
  }
  const auto* at = reinterpret_cast<const unsigned char*>(der.data());
  ASN1_UTF8STRING* value = d2i_ASN1_UTF8STRING(nullptr, &at, static_cast<long>(der.size()));
  const bool whole = value != nullptr && ASN1_STRING_type(value) == V_ASN1_UTF8STRING &&
                     at == reinterpret_cast<const unsigned char*>(der.data()) + der.size();
  std::string text = whole ? text_of(value) : "";
  ASN1_UTF8STRING_free(value);
  ERR_clear_error();
  if (!whole) {
    refuse("identity", fmt::format("expected a text in extension {}, got other bytes", name));
  }
  return text;
}

// The one address in the subject alternative name.
std::string subject_of(const X509* certificate) {
  const Names names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  if (!names || sk_GENERAL_NAME_num(names.get()) != 1) {
    return "";
  }
  const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), 0);
  const bool is_text = name->type == GEN_URI || name->type == GEN_EMAIL;
  return is_text ? text_of(name->d.ia5) : "";
}

// Whether the authority's chain leads from the certificate to its root at that time.
bool is_issued_by(X509* certificate, const Authority& authority, int64_t time_s) {
  const Store store(X509_STORE_new());
  X509_STORE_add_cert(store.get(), authority.chain.back().get());
  const Stack between(sk_X509_new_null());
  for (size_t i = 0; i + 1 < authority.chain.size(); ++i) {
    sk_X509_push(between.get(), authority.chain[i].get());
  }
  const StoreContext context(X509_STORE_CTX_new());
  if (X509_STORE_CTX_init(context.get(), store.get(), certificate, between.get()) != 1) {
    return false;
  }
  X509_VERIFY_PARAM* parameters = X509_STORE_CTX_get0_param(context.get());
  X509_VERIFY_PARAM_set_time(parameters, time_s);
  X509_VERIFY_PARAM_set_flags(parameters, X509_V_FLAG_PARTIAL_CHAIN);
  X509_VERIFY_PARAM_set_purpose(parameters, X509_PURPOSE_ANY);
  const bool good = X509_verify_cert(context.get()) == 1;
  ERR_clear_error();
  return good;
}

void append_number(std::string& bytes, uint64_t number, int num_bytes) {
  for (int i = num_bytes - 1; i >= 0; --i) {
    bytes += static_cast<char>(number >> (8 * i) & 255);
  }
}

// The part of a certificate that was signed, without the confirmation that it was logged.
std::string precertificate(const X509* certificate) {
  const Certificate copy(X509_dup(certificate));
  const int at = X509_get_ext_by_NID(copy.get(), NID_ct_precert_scts, -1);
  X509_EXTENSION_free(X509_delete_ext(copy.get(), at));
  unsigned char* bytes = nullptr;
  const int size = i2d_re_X509_tbs(copy.get(), &bytes);
  std::string result(reinterpret_cast<char*>(bytes), size < 0 ? 0 : static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return result;
}

// What a certificate log signed (RFC 6962, 3.2).
std::string confirmed_bytes(const SCT* sct, const X509* certificate, const X509* issuer) {
  const std::string entry = precertificate(certificate);
  std::string bytes;
  append_number(bytes, 0, 1);  // version 1
  append_number(bytes, 0, 1);  // certificate timestamp
  append_number(bytes, SCT_get_timestamp(sct), 8);
  append_number(bytes, 1, 2);  // precertificate
  bytes += key_id_of(issuer);
  append_number(bytes, entry.size(), 3);
  bytes += entry;
  unsigned char* extensions = nullptr;
  const size_t size = SCT_get0_extensions(sct, &extensions);
  append_number(bytes, size, 2);
  bytes.append(reinterpret_cast<char*>(extensions), size);
  return bytes;
}

bool is_confirmed(const SCT* sct, const X509* certificate, const X509* issuer, const Log& log) {
  unsigned char* id = nullptr;
  const size_t id_size = SCT_get0_log_id(sct, &id);
  unsigned char* signature = nullptr;
  const size_t signature_size = SCT_get0_signature(sct, &signature);
  const auto time_s = static_cast<int64_t>(SCT_get_timestamp(sct) / 1000);
  return std::string_view(reinterpret_cast<char*>(id), id_size) == log.id &&
         log.valid_for.holds(time_s) &&
         log.key.verifies({reinterpret_cast<char*>(signature), signature_size},
                          confirmed_bytes(sct, certificate, issuer));
}

void check_certificate_log(const X509* certificate, const X509* issuer, const TrustedRoot& root) {
  const ScTimestamps list(static_cast<STACK_OF(SCT)*>(
      X509_get_ext_d2i(certificate, NID_ct_precert_scts, nullptr, nullptr)));
  ERR_clear_error();
  if (!list || sk_SCT_num(list.get()) != 1) {
    refuse("certificate-log",
           "expected a certificate with one confirmation of a certificate log, "
           "got another number");
  }
  const SCT* sct = sk_SCT_value(list.get(), 0);
  const auto confirms = [&](const Log& log) { return is_confirmed(sct, certificate, issuer, log); };
  if (SCT_get_version(sct) != SCT_VERSION_V1 ||
      std::none_of(root.certificate_logs.begin(), root.certificate_logs.end(), confirms)) {
    refuse("certificate-log",
           "expected the confirmation of a certificate log of the trusted root, got one that does "
           "not verify");
  }
}

void check_intermediates(const std::vector<std::string>& intermediates, const TrustedRoot& root) {
  for (const std::string& der : intermediates) {
    bool known = false;
    for (const Authority& authority : root.certificate_authorities) {
      for (size_t i = 0; i + 1 < authority.chain.size(); ++i) {
        known = known || der_of(authority.chain[i].get()) == der;
      }
    }
    if (!known) {
      refuse("chain",
             "expected only intermediate certificates of the trusted root beside the signer's");
    }
  }
}

}  // namespace

Signer signer_of(const X509* certificate) {
  Signer signer{subject_of(certificate),
                text_extension(certificate, kIssuerV2),
                text_extension(certificate, kSourceRepository),
                text_extension(certificate, kSourceRef),
                text_extension(certificate, kSourceCommit),
                text_extension(certificate, kBuildSigner)};
  const std::string old_issuer = extension(certificate, kIssuer);
  if (!old_issuer.empty() && !signer.issuer.empty() && old_issuer != signer.issuer) {
    refuse("identity",
           fmt::format("expected one issuer, got `{}` and `{}`", old_issuer, signer.issuer));
  }
  if (signer.issuer.empty()) {
    signer.issuer = old_issuer;
  }
  return signer;
}

void check_certificate(X509* certificate, const std::vector<std::string>& intermediates,
                       int64_t time_s, const TrustedRoot& root) {
  check_intermediates(intermediates, root);
  const X509* issuer = nullptr;
  for (const Authority& authority : root.certificate_authorities) {
    if (authority.valid_for.holds(time_s) && is_issued_by(certificate, authority, time_s)) {
      issuer = authority.chain.front().get();
      break;
    }
  }
  if (issuer == nullptr) {
    refuse("chain",
           "expected a certificate that an authority of the trusted root issued and that was valid "
           "when the signature was made, got another");
  }
  if (X509_check_ca(certificate) != 0 ||
      (X509_get_key_usage(certificate) & KU_DIGITAL_SIGNATURE) == 0 ||
      X509_get_key_usage(certificate) == UINT32_MAX ||
      (X509_get_extended_key_usage(certificate) & XKU_CODE_SIGN) == 0 ||
      X509_get_extended_key_usage(certificate) == UINT32_MAX) {
    refuse("usage", "expected a certificate for signing code, got one for other uses");
  }
  check_certificate_log(certificate, issuer, root);
}

}  // namespace graft::trust::sigstore

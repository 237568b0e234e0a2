#include "graft/trust/sigstore/timestamp_check.h"

#include <ctime>

#include <openssl/err.h>
#include <openssl/pkcs7.h>
#include <openssl/ts.h>

#include "graft/core/error.h"

namespace graft::trust::sigstore {

namespace {

using Response = std::unique_ptr<TS_RESP, Freed<TS_RESP, TS_RESP_free>>;
using VerifyContext = std::unique_ptr<TS_VERIFY_CTX, Freed<TS_VERIFY_CTX, TS_VERIFY_CTX_free>>;

struct FreeStack {
  void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }
};

[[noreturn]] void refuse(std::string_view message) {
  throw IntegrityError("trust.signature", "timestamp", message);
}

int64_t seconds_of(const ASN1_GENERALIZEDTIME* time) {
  std::tm parts{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &parts) != 1) {
    refuse("expected a time in the timestamp, got none");
  }
  return timegm(&parts);
}

// What the authority saw is a hash that nobody can find a second text for.
bool has_strong_imprint(TS_RESP* response) {
  const ASN1_OBJECT* name = nullptr;
  X509_ALGOR_get0(
      &name, nullptr, nullptr,
      TS_MSG_IMPRINT_get_algo(TS_TST_INFO_get_msg_imprint(TS_RESP_get_tst_info(response))));
  const int hash = OBJ_obj2nid(name);
  return hash == NID_sha256 || hash == NID_sha384 || hash == NID_sha512;
}

// The authority's own certificate made this response; its embedded certificates are no authority.
bool is_signed_by(TS_RESP* response, STACK_OF(X509) * certificates, const X509* authority) {
  PKCS7* token = TS_RESP_get_token(response);
  const std::unique_ptr<STACK_OF(X509), FreeStack> signers(
      PKCS7_get0_signers(token, certificates, 0));
  return signers && sk_X509_num(signers.get()) == 1 &&
         X509_cmp(sk_X509_value(signers.get(), 0), authority) == 0;
}

bool is_from(TS_RESP* response, std::string_view signature, const Authority& authority,
             int64_t time_s) {
  if (!authority.valid_for.holds(time_s) || !has_strong_imprint(response)) {
    return false;
  }
  X509_STORE* store = X509_STORE_new();
  X509_STORE_add_cert(store, authority.chain.back().get());
  X509_VERIFY_PARAM_set_time(X509_STORE_get0_param(store), time_s);
  X509_VERIFY_PARAM_set_flags(X509_STORE_get0_param(store), X509_V_FLAG_PARTIAL_CHAIN);
  STACK_OF(X509)* certificates = sk_X509_new_null();
  for (const auto& certificate : authority.chain) {
    X509_up_ref(certificate.get());
    sk_X509_push(certificates, certificate.get());
  }
  BIO* data = BIO_new_mem_buf(signature.data(), static_cast<int>(signature.size()));
  const VerifyContext context(TS_VERIFY_CTX_new());  // takes store, certificates and data over
  TS_VERIFY_CTX_set_flags(context.get(), TS_VFY_VERSION | TS_VFY_SIGNATURE | TS_VFY_DATA);
  TS_VERIFY_CTX_set_store(context.get(), store);
  TS_VERIFY_CTX_set_certs(context.get(), certificates);
  TS_VERIFY_CTX_set_data(context.get(), data);
  const bool good = TS_RESP_verify_response(context.get(), response) == 1 &&
                    is_signed_by(response, certificates, authority.chain.front().get());
  ERR_clear_error();
  return good;
}

}  // namespace

int64_t verified_timestamp(std::string_view response, std::string_view signature,
                           const TrustedRoot& root) {
  const auto* at = reinterpret_cast<const unsigned char*>(response.data());
  const Response parsed(d2i_TS_RESP(nullptr, &at, static_cast<long>(response.size())));
  ERR_clear_error();
  if (!parsed || at != reinterpret_cast<const unsigned char*>(response.data()) + response.size() ||
      TS_RESP_get_tst_info(parsed.get()) == nullptr) {
    refuse("expected a timestamp in the response, got other bytes");
  }
  const int64_t time_s = seconds_of(TS_TST_INFO_get_time(TS_RESP_get_tst_info(parsed.get())));
  for (const Authority& authority : root.timestamp_authorities) {
    if (is_from(parsed.get(), signature, authority, time_s)) {
      return time_s;
    }
  }
  refuse(
      "expected a timestamp over this signature by an authority of the trusted root, got "
      "another");
}

}  // namespace graft::trust::sigstore

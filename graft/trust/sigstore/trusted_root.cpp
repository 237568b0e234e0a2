#include "graft/trust/sigstore/trusted_root.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <limits>

#include <fmt/format.h>
#include <openssl/asn1.h>
#include <openssl/x509.h>

#include "graft/io/excerpt.h"
#include "graft/trust/strict_object.h"

namespace graft::trust::sigstore {

namespace {

constexpr size_t kMaxRootBytes = 1 << 20;

// RFC 3339 in UTC, e.g. `2022-12-31T23:59:59.999Z`; parts of a second are cut off.
int64_t read_time(const StrictObject& object, const char* key) {
  const std::string text = object.text(key);
  std::tm time{};
  int read = 0;
  const bool whole =
      std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d%n", &time.tm_year, &time.tm_mon,
                  &time.tm_mday, &time.tm_hour, &time.tm_min, &time.tm_sec, &read) == 6;
  std::string_view rest = std::string_view(text).substr(static_cast<size_t>(read));
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    rest.remove_prefix(std::min(rest.find_first_not_of("0123456789"), rest.size()));
  }
  if (!whole || rest != "Z" || time.tm_mon < 1 || time.tm_mon > 12 || time.tm_mday < 1 ||
      time.tm_mday > 31) {
    object.fail(
        "time", key,
        fmt::format("expected a time such as 2022-10-20T00:00:00Z, got `{}`", io::excerpt(text)));
  }
  time.tm_year -= 1900;
  time.tm_mon -= 1;
  return timegm(&time);
}

TimeRange read_range(const StrictObject& object) {
  const auto range = object.object("validFor", {"start", "end"});
  TimeRange result{read_time(range, "start"), {}};
  if (range.has("end")) {
    result.end_s = read_time(range, "end");
  }
  return result;
}

std::vector<Log> read_logs(const StrictObject& root, const char* key) {
  std::vector<Log> logs;
  for (const auto& object : root.objects(key, {"baseUrl", "hashAlgorithm", "publicKey", "logId",
                                               "checkpointKeyId", "operator"})) {
    const auto key_object = object.object("publicKey", {"rawBytes", "keyDetails", "validFor"});
    auto public_key = PublicKey::read(key_object.bytes("rawBytes"), key_object.text("keyDetails"));
    TimeRange valid_for = read_range(key_object);
    const std::string id = object.object("logId", {"keyId"}).bytes("keyId");
    if (public_key && object.text("hashAlgorithm") == "SHA2_256") {
      logs.push_back({object.text("baseUrl"), id, *std::move(public_key), valid_for});
    }
  }
  return logs;
}

std::vector<Authority> read_authorities(const StrictObject& root, const char* key) {
  std::vector<Authority> authorities;
  if (!root.has(key)) {
    return authorities;
  }
  for (const auto& object :
       root.objects(key, {"subject", "uri", "certChain", "validFor", "operator"})) {
    Authority authority;
    authority.valid_for = read_range(object);
    const auto chain = object.object("certChain", {"certificates"});
    for (const auto& item : chain.objects("certificates", {"rawBytes"})) {
      authority.chain.push_back(read_certificate(item.bytes("rawBytes")));
      if (!authority.chain.back()) {
        item.fail("certificate", "rawBytes", "expected a certificate");
      }
    }
    if (authority.chain.empty()) {
      chain.fail("certificate", "certificates", "expected at least one");
    }
    authorities.push_back(std::move(authority));
  }
  return authorities;
}

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t end_of(const TimeRange& range) { return range.end_s.value_or(kNever); }

int64_t end_of(const X509& certificate) {
  std::tm time{};
  return ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &time) == 1 ? timegm(&time) : 0;
}

}  // namespace

TrustedRoot parse_trusted_root(std::string text, const std::string& file) {
  const StrictDocument document(std::move(text), "trust.root", file, kMaxRootBytes);
  const StrictObject root(
      document, {"mediaType", "tlogs", "certificateAuthorities", "ctlogs", "timestampAuthorities"});
  const std::string type = root.text("mediaType");
  if (type != "application/vnd.dev.sigstore.trustedroot+json;version=0.1" &&
      type != "application/vnd.dev.sigstore.trustedroot.v0.2+json") {
    root.fail(
        "media-type", "mediaType",
        fmt::format("expected a trusted root of format 0.1 or 0.2, got `{}`", io::excerpt(type)));
  }
  TrustedRoot result{read_logs(root, "tlogs"), read_logs(root, "ctlogs"),
                     read_authorities(root, "certificateAuthorities"),
                     read_authorities(root, "timestampAuthorities")};
  if (result.transparency_logs.empty() || result.certificate_logs.empty() ||
      result.certificate_authorities.empty()) {
    root.fail("incomplete", "mediaType",
              "expected a certificate authority and logs with keys that are known");
  }
  return result;
}

std::optional<int64_t> usable_until_s(const TrustedRoot& root) {
  int64_t authority_s = 0, log_s = 0, certificate_log_s = 0;
  for (const auto& authority : root.certificate_authorities) {
    int64_t end_s = end_of(authority.valid_for);
    for (const auto& certificate : authority.chain) {
      end_s = std::min(end_s, end_of(*certificate));
    }
    authority_s = std::max(authority_s, end_s);
  }
  for (const auto& log : root.transparency_logs) {
    log_s = std::max(log_s, end_of(log.valid_for));
  }
  for (const auto& log : root.certificate_logs) {
    certificate_log_s = std::max(certificate_log_s, end_of(log.valid_for));
  }
  const int64_t end_s = std::min({authority_s, log_s, certificate_log_s});
  return end_s == kNever ? std::nullopt : std::optional(end_s);
}

}  // namespace graft::trust::sigstore

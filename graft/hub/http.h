// HTTP over libcurl with budgets: nothing here waits, reads or retries without a limit.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub {

struct HttpResponse;

// Receives a piece of the body, with status and headers already known; returns false to end the
// transfer.
using BodySink = std::function<bool(std::string_view piece, const HttpResponse& response)>;

struct HttpRequest {
  std::string method = "GET";  // GET or HEAD
  std::string url;
  std::map<std::string, std::string> headers;  // values may not hold CR or LF
  uint64_t max_body_bytes = 64ULL << 20;       // one byte more ends the transfer with an error
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds timeout{60'000};  // whole transfer; 0: none
  std::chrono::seconds stall_timeout{20};     // less than 1 KiB/s for so long ends the transfer
  BodySink sink;  // called for 2xx bodies only; absent: collected in `body`
};

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; the last of equal names
  std::string body;

  // The header's value, or an empty text.
  const std::string& header(const std::string& lower_case_name) const;
};

// Sends one request and does not follow redirects: who may see the token is the caller's decision.
//
// Proxies from http_proxy, https_proxy, all_proxy, no_proxy in either case; certificates from
// SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, else the system's.
// Throws   NetworkError (`hub.http.*`): connection, TLS, time-out, stall, too-large body, header
// block
//          over 256 KiB. No error text holds a token or a query string.
// Blocking; thread-safe (one handle per thread).
HttpResponse http_send(const HttpRequest& request);

// What http_send's caller may do again: 408, 429 and 5xx.
bool is_transient_status(int status);

// How long the server asks to be left alone: Retry-After in seconds, or `t` of a RateLimit header
// that has nothing left (`"api";r=0;t=27`). 0 when it does not say.
std::chrono::seconds retry_after(const HttpResponse& response);

// The wait before try `attempt` + 2: what the server asks for and a second, or full jitter below 1,
// 2, 4, 8 s. Nothing when the wait would end after `deadline`.
std::optional<std::chrono::milliseconds> wait_before_retry(
    int attempt, std::chrono::seconds asked_for, std::chrono::steady_clock::time_point deadline);

// Sends with up to `max_tries` tries on transient statuses and network errors. Waits with full
// jitter between 1, 2, 4, 8 s or what Retry-After says, never past `deadline` in all.
HttpResponse http_send_with_retries(const HttpRequest& request, int max_tries = 5,
                                    std::chrono::seconds deadline = std::chrono::seconds(60));

// `scheme://host:port` of a URL in lower case, for deciding whether two URLs are the same origin.
// Throws   NetworkError for a URL that is not http or https, or that carries user information.
std::string url_origin(std::string_view url);

// Resolves a Location header against the URL that answered with it.
std::string resolve_location(std::string_view base_url, std::string_view location);

// Percent-encodes everything but unreserved characters; `keep` names further characters to leave.
std::string percent_encode(std::string_view text, std::string_view keep = {});

}  // namespace graft::hub

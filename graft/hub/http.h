// HTTP over libcurl with budgets: nothing here waits, reads or retries without a limit.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "graft/core/error.h"

namespace graft::hub {

struct HttpResponse;

// Receives a piece of the body, with status and headers already known; returns false to end the
// transfer.
using BodySink = std::function<bool(std::string_view piece, const HttpResponse& response)>;

struct HttpRequest {
  std::string method = "GET";  // GET, HEAD or POST
  std::string url;
  std::map<std::string, std::string> headers;  // values may not hold CR or LF
  std::string body;                            // of a POST
  uint64_t max_body_bytes = 64ULL << 20;       // one byte more ends the transfer with an error
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds timeout{60'000};  // whole transfer; 0: none
  std::chrono::seconds stall_timeout{20};     // less than 1 KiB/s for so long ends the transfer
  BodySink sink;  // called for 2xx bodies only, and may throw; absent: collected in `body`
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
// SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, else the system's. What a server sends
// beside a status that is no success is read up to 64 KiB and no further.
// Throws   NetworkError (`hub.http.*`): name, connection, proxy, tls, timeout (stalls included),
//          too-large for a body over its limit or headers over 256 KiB; what the sink threw. No
//          error text holds a token or a query string.
// Blocking; thread-safe (one handle per thread).
HttpResponse http_send(const HttpRequest& request);

// What http_send's caller may do again: 408, 429 and 5xx.
bool is_transient_status(int status);

// The same for what was thrown: a broken connection, yes; a certificate or a redirect that was
// refused stays what it is.
bool is_transient_error(const Error& error);

// How long the server asks to be left alone: Retry-After in seconds or as a date, or `t` of a
// RateLimit header that has nothing left (`"api";r=0;t=27`). 0 when it does not say.
std::chrono::seconds retry_after(const HttpResponse& response);

// The wait before try `attempt` + 2: what the server asks for and a second, or full jitter below 1,
// 2, 4, 8 s. Nothing when the wait would end after `deadline`.
std::optional<std::chrono::milliseconds> wait_before_retry(
    int attempt, std::chrono::seconds asked_for, std::chrono::steady_clock::time_point deadline);

// Sends with up to `max_tries` tries on transient statuses and network errors. Waits with full
// jitter between 1, 2, 4, 8 s or what Retry-After says; tries and waits end with `deadline`.
HttpResponse http_send_with_retries(HttpRequest request, int max_tries,
                                    std::chrono::seconds deadline);

}  // namespace graft::hub

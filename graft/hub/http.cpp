#include "graft/hub/http.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include <curl/curl.h>
#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/core/version.h"
#include "graft/hub/url.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxHeaderBytes = 256 * 1024;
constexpr uint64_t kMaxRefusalBytes = 64 * 1024;
constexpr std::chrono::seconds kNoticeableWait{5};

struct CurlDeleter {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
using CurlHandle = std::unique_ptr<CURL, CurlDeleter>;

struct SlistDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

// State that libcurl's callbacks share.
struct Transfer {
  const HttpRequest& request;
  HttpResponse response;
  uint64_t body_bytes = 0;
  size_t header_bytes = 0;
  bool too_large = false;
  bool stopped_by_sink = false;
  bool refusal_is_read = false;      // as much as anybody wants of it
  std::exception_ptr sink_failed{};  // no exception may pass through libcurl
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

size_t on_header(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view line(data, size * count);
  transfer.header_bytes += line.size();
  if (transfer.header_bytes > kMaxHeaderBytes) {
    transfer.too_large = true;
    return 0;
  }
  if (line.starts_with("HTTP/")) {
    transfer.response.headers.clear();  // the answer of a proxy or a 1xx came before
    const auto space = line.find(' ');
    transfer.response.status = space == std::string_view::npos
                                   ? 0
                                   : std::atoi(std::string(line.substr(space + 1, 3)).c_str());
  } else if (const auto colon = line.find(':'); colon != std::string_view::npos) {
    transfer.response.headers[lower(trim(line.substr(0, colon)))] =
        std::string(trim(line.substr(colon + 1)));
  }
  return size * count;
}

bool is_success(const Transfer& transfer) { return transfer.response.status / 100 == 2; }

// Gives a piece to whoever wants it; false ends the transfer.
bool take(Transfer& transfer, std::string_view piece) {
  transfer.body_bytes += piece.size();
  // An error page must not end up in a file that waits for content, nor be read for ever.
  if (!is_success(transfer) && transfer.body_bytes > kMaxRefusalBytes) {
    transfer.refusal_is_read = true;
    return false;
  }
  if (is_success(transfer) && transfer.body_bytes > transfer.request.max_body_bytes) {
    transfer.too_large = true;
    return false;
  }
  if (!transfer.request.sink) {
    transfer.response.body.append(piece);
    return true;
  }
  transfer.stopped_by_sink =
      is_success(transfer) && !transfer.request.sink(piece, transfer.response);
  return !transfer.stopped_by_sink;
}

size_t on_body(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  try {
    return take(transfer, {data, size * count}) ? size * count : 0;
  } catch (...) {
    transfer.sink_failed = std::current_exception();
    return 0;
  }
}

std::string certificate_file() {
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    if (auto value = env::get(name); value && !value->empty()) {
      return *value;
    }
  }
  return {};
}

// libcurl reads http_proxy in lower case only; people set either.
std::optional<std::string> upper_case_proxy(std::string_view url) {
  for (const char* name : {url.starts_with("https:") ? "HTTPS_PROXY" : "HTTP_PROXY", "ALL_PROXY"}) {
    auto value = env::get(name);
    if (value && !value->empty() && !env::get(lower(name).c_str())) {
      return value;
    }
  }
  return std::nullopt;
}

void set_options(CURL* curl, const HttpRequest& request, Transfer& transfer, char* error_text) {
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.method == "HEAD" ? 1L : 0L);
  if (request.method == "POST") {
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.c_str());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
  }
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(request.connect_timeout.count()));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1024L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(request.stall_timeout.count()));
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error_text);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  if (const auto proxy = upper_case_proxy(request.url)) {
    curl_easy_setopt(curl, CURLOPT_PROXY, proxy->c_str());
  }
  if (const auto file = certificate_file(); !file.empty()) {
    curl_easy_setopt(curl, CURLOPT_CAINFO, file.c_str());
  }
}

std::unique_ptr<curl_slist, SlistDeleter> header_list(const HttpRequest& request) {
  curl_slist* list = nullptr;
  for (const auto& [name, value] : request.headers) {
    if (value.find_first_of("\r\n") != std::string::npos) {
      curl_slist_free_all(list);
      throw InvalidArgument("hub.http", "header",
                            fmt::format("header {}: expected one line, got several", name));
    }
    list = curl_slist_append(list, fmt::format("{}: {}", name, value).c_str());
  }
  return std::unique_ptr<curl_slist, SlistDeleter>(list);
}

struct Failure {
  const char* reason;
  std::string hint;
};

Failure failure_of(CURL* curl, CURLcode code) {
  long proxy_status = 0;
  curl_easy_getinfo(curl, CURLINFO_HTTP_CONNECTCODE, &proxy_status);
  if (proxy_status >= 300 || code == CURLE_COULDNT_RESOLVE_PROXY || code == CURLE_PROXY) {
    return {"proxy",
            "the proxy is named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY; NO_PROXY leaves "
            "hosts out"};
  }
  constexpr std::array kTls = {CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CONNECT_ERROR,
                               CURLE_SSL_CACERT_BADFILE,       CURLE_SSL_ISSUER_ERROR,
                               CURLE_SSL_CERTPROBLEM,          CURLE_SSL_CIPHER};
  if (std::find(kTls.begin(), kTls.end(), code) != kTls.end()) {
    const auto file = certificate_file();
    return {"tls", file.empty()
                       ? "certificates of the system are trusted; SSL_CERT_FILE names others"
                       : fmt::format("certificates of `{}` are trusted", file)};
  }
  if (code == CURLE_OPERATION_TIMEDOUT) {
    return {"timeout", ""};
  }
  return {code == CURLE_COULDNT_RESOLVE_HOST ? "name" : "connection", ""};
}

[[noreturn]] void throw_failure(CURL* curl, CURLcode code, const Transfer& transfer,
                                const char* error_text) {
  if (transfer.sink_failed) {
    std::rethrow_exception(transfer.sink_failed);
  }
  const auto url = without_query(transfer.request.url);
  if (transfer.too_large) {
    throw NetworkError(
        "hub.http", "too-large",
        fmt::format("`{}`: expected at most {} bytes of body and {} of headers, got more", url,
                    transfer.request.max_body_bytes, kMaxHeaderBytes));
  }
  if (transfer.stopped_by_sink) {
    throw Cancelled("hub.http", "stopped", fmt::format("`{}`: the transfer was stopped", url));
  }
  const auto failure = failure_of(curl, code);
  const std::string detail = *error_text != '\0' ? error_text : curl_easy_strerror(code);
  throw NetworkError("hub.http", failure.reason,
                     fmt::format("`{}`: expected an answer, got: {}", url, detail), failure.hint);
}

std::chrono::seconds seconds_in(std::string_view text) {
  constexpr size_t kDigits = 6;  // eleven days; more is as good as for ever
  if (text.empty() || text.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::chrono::seconds(0);
  }
  return std::chrono::seconds(
      std::stoi(text.size() > kDigits ? std::string(kDigits, '9') : std::string(text)));
}

}  // namespace

const std::string& HttpResponse::header(const std::string& lower_case_name) const {
  static const std::string kNone;
  const auto found = headers.find(lower_case_name);
  return found == headers.end() ? kNone : found->second;
}

HttpResponse http_send(const HttpRequest& request) {
  static const CURLcode kInit = curl_global_init(CURL_GLOBAL_DEFAULT);
  url_origin(request.url);  // refuses other schemes and user information
  thread_local const CurlHandle handle(kInit == CURLE_OK ? curl_easy_init() : nullptr);
  if (!handle) {
    throw NetworkError("hub.http", "init", "libcurl: expected a handle, got none");
  }
  curl_easy_reset(handle.get());
  Transfer transfer{request, {}};
  char error_text[CURL_ERROR_SIZE] = "";
  set_options(handle.get(), request, transfer, error_text);
  const auto headers = header_list(request);
  curl_easy_setopt(handle.get(), CURLOPT_HTTPHEADER, headers.get());
  const auto agent = fmt::format("graft/{}", kVersion);
  curl_easy_setopt(handle.get(), CURLOPT_USERAGENT, agent.c_str());
  const CURLcode code = curl_easy_perform(handle.get());
  log()->debug("{} {}: {} {}, {} bytes", request.method, without_query(request.url),
               transfer.response.status, code == CURLE_OK ? "" : curl_easy_strerror(code),
               transfer.body_bytes);
  if (code != CURLE_OK && !transfer.refusal_is_read) {
    throw_failure(handle.get(), code, transfer, error_text);
  }
  return std::move(transfer.response);
}

bool is_transient_status(int status) { return status == 408 || status == 429 || status >= 500; }

bool is_transient_error(const Error& error) {
  constexpr std::array<std::string_view, 5> kTransient = {"hub.http.connection", "hub.http.timeout",
                                                          "hub.http.name", "hub.client.status",
                                                          "hub.client.rate-limit"};
  return std::find(kTransient.begin(), kTransient.end(), error.code()) != kTransient.end();
}

std::chrono::seconds retry_after(const HttpResponse& response) {
  if (const std::string& text = response.header("retry-after"); !text.empty()) {
    const bool is_date = text.find_first_not_of("0123456789") != std::string::npos;
    const std::time_t wait = is_date ? curl_getdate(text.c_str(), nullptr) - std::time(nullptr) : 0;
    return is_date ? std::chrono::seconds(std::max<std::time_t>(0, wait)) : seconds_in(text);
  }
  const std::string& limit = response.header("ratelimit");
  const auto left = limit.find(";r=0;"), time = limit.find(";t=");
  if (left == std::string::npos || time == std::string::npos) {
    return std::chrono::seconds(0);
  }
  const auto digits = std::string_view(limit).substr(time + 3);
  return seconds_in(digits.substr(0, digits.find_first_not_of("0123456789")));
}

std::optional<std::chrono::milliseconds> wait_before_retry(
    int attempt, std::chrono::seconds asked_for, std::chrono::steady_clock::time_point deadline) {
  std::chrono::milliseconds wait = asked_for + std::chrono::seconds(1);
  if (asked_for.count() == 0) {
    thread_local std::mt19937 random(std::random_device{}());
    const int ceiling_ms = 1000 << std::clamp(attempt, 0, 3);
    wait = std::chrono::milliseconds(
        std::uniform_int_distribution<int>(ceiling_ms / 4, ceiling_ms)(random));
  }
  return std::chrono::steady_clock::now() + wait > deadline ? std::nullopt : std::optional(wait);
}

HttpResponse http_send_with_retries(HttpRequest request, int max_tries,
                                    std::chrono::seconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  for (int attempt = 0;; ++attempt) {
    const bool last = attempt + 1 >= max_tries;
    std::optional<std::chrono::milliseconds> wait;
    std::string why;
    const auto left = std::max(std::chrono::milliseconds(1),
                               std::chrono::duration_cast<std::chrono::milliseconds>(
                                   end - std::chrono::steady_clock::now()));
    request.timeout = request.timeout.count() == 0 ? left : std::min(left, request.timeout);
    try {
      HttpResponse response = http_send(request);
      if (last || !is_transient_status(response.status)) {
        return response;
      }
      const auto asked_for = retry_after(response);
      wait = wait_before_retry(attempt, asked_for, end);
      if (!wait) {
        return response;
      }
      why = asked_for.count() > 0 ? "the Hub asks to wait"
                                  : fmt::format("the Hub answers with status {}", response.status);
    } catch (const NetworkError& error) {
      wait = wait_before_retry(attempt, std::chrono::seconds(0), end);
      if (last || !is_transient_error(error) || !wait) {
        throw;
      }
      const std::string text = error.what();
      why = text.substr(0, text.find('\n'));
    }
    if (*wait > kNoticeableWait) {
      log()->warn("{}: trying again in {} s", why, wait->count() / 1000);
    }
    std::this_thread::sleep_for(*wait);
  }
}

}  // namespace graft::hub

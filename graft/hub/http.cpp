#include "graft/hub/http.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>

#include <curl/curl.h>
#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/core/version.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxHeaderBytes = 256 * 1024;
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

size_t on_body(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view piece(data, size * count);
  transfer.body_bytes += piece.size();
  if (transfer.body_bytes > transfer.request.max_body_bytes) {
    transfer.too_large = true;
    return 0;
  }
  if (transfer.request.sink) {
    if (!transfer.request.sink(piece, transfer.response)) {
      transfer.stopped_by_sink = true;
      return 0;
    }
  } else {
    transfer.response.body.append(piece);
  }
  return piece.size();
}

// An error page must not end up in a file that waits for content.
size_t on_body_checking_status(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  return transfer.response.status / 100 == 2 ? on_body(data, size, count, user) : size * count;
}

// The URL without its query, which may hold a signature.
std::string shown(std::string_view url) { return std::string(url.substr(0, url.find('?'))); }

std::string certificate_file() {
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    if (auto value = env::get(name); value && !value->empty()) {
      return *value;
    }
  }
  return {};
}

void set_options(CURL* curl, const HttpRequest& request, Transfer& transfer, char* error_text) {
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.method == "HEAD" ? 1L : 0L);
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
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, request.sink ? on_body_checking_status : on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  // libcurl reads http_proxy in lower case only; people set either.
  const char* own_proxy = request.url.starts_with("https:") ? "HTTPS_PROXY" : "HTTP_PROXY";
  for (const char* name : {own_proxy, "ALL_PROXY"}) {
    const auto value = env::get(name);
    if (value && !value->empty() && !env::get(lower(name).c_str())) {
      curl_easy_setopt(curl, CURLOPT_PROXY, value->c_str());
      break;
    }
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

[[noreturn]] void throw_failure(CURLcode code, const Transfer& transfer, const char* error_text) {
  const auto url = shown(transfer.request.url);
  if (transfer.too_large) {
    throw NetworkError(
        "hub.http", "too-large",
        fmt::format("`{}`: expected at most {} bytes of body and {} of headers, got more", url,
                    transfer.request.max_body_bytes, kMaxHeaderBytes));
  }
  if (transfer.stopped_by_sink) {
    throw Cancelled("hub.http", "stopped", fmt::format("`{}`: the transfer was stopped", url));
  }
  const char* reason = "connection";
  if (code == CURLE_OPERATION_TIMEDOUT) {
    reason = "timeout";
  } else if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CONNECT_ERROR ||
             code == CURLE_SSL_CACERT_BADFILE) {
    reason = "tls";
  } else if (code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY) {
    reason = "name";
  }
  const std::string detail = *error_text != '\0' ? error_text : curl_easy_strerror(code);
  throw NetworkError("hub.http", reason,
                     fmt::format("`{}`: expected an answer, got: {}", url, detail));
}

std::chrono::seconds seconds_in(std::string_view text) {
  const bool is_number =
      !text.empty() && text.size() < 7 &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  return std::chrono::seconds(is_number ? std::stoi(std::string(text)) : 0);
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
  Transfer transfer{request, {}, 0, 0, false, false};
  char error_text[CURL_ERROR_SIZE] = "";
  set_options(handle.get(), request, transfer, error_text);
  const auto headers = header_list(request);
  curl_easy_setopt(handle.get(), CURLOPT_HTTPHEADER, headers.get());
  const auto agent = fmt::format("graft/{}", kVersion);
  curl_easy_setopt(handle.get(), CURLOPT_USERAGENT, agent.c_str());
  const CURLcode code = curl_easy_perform(handle.get());
  if (code != CURLE_OK) {
    throw_failure(code, transfer, error_text);
  }
  return std::move(transfer.response);
}

bool is_transient_status(int status) { return status == 408 || status == 429 || status >= 500; }

std::chrono::seconds retry_after(const HttpResponse& response) {
  if (const std::string& text = response.header("retry-after"); !text.empty()) {
    return seconds_in(text);
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

HttpResponse http_send_with_retries(const HttpRequest& request, int max_tries,
                                    std::chrono::seconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  for (int attempt = 0;; ++attempt) {
    const bool last = attempt + 1 >= max_tries;
    std::optional<std::chrono::milliseconds> wait;
    try {
      HttpResponse response = http_send(request);
      if (last || !is_transient_status(response.status)) {
        return response;
      }
      wait = wait_before_retry(attempt, retry_after(response), end);
      if (!wait) {
        return response;
      }
    } catch (const NetworkError& error) {
      wait = wait_before_retry(attempt, std::chrono::seconds(0), end);
      if (last || error.code() == "hub.http.tls" || error.code() == "hub.http.too-large" || !wait) {
        throw;
      }
    }
    if (*wait > kNoticeableWait) {
      log()->warn("the Hub asks to wait {} s", wait->count() / 1000);
    }
    std::this_thread::sleep_for(*wait);
  }
}

std::string url_origin(std::string_view url) {
  const auto scheme_end = url.find("://");
  const std::string scheme =
      scheme_end == std::string_view::npos ? "" : lower(url.substr(0, scheme_end));
  if (scheme != "http" && scheme != "https") {
    throw NetworkError("hub.http", "scheme",
                       fmt::format("URL: expected http or https, got `{}`", shown(url)));
  }
  std::string_view rest = url.substr(scheme_end + 3);
  rest = rest.substr(0, rest.find_first_of("/?#"));
  if (rest.empty() || rest.find('@') != std::string_view::npos) {
    throw NetworkError("hub.http", "host",
                       "URL: expected a host without user information, got another");
  }
  const auto bracket = rest.rfind(']');  // the end of an IPv6 address
  const auto colon = rest.rfind(':');
  const bool has_port =
      colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket);
  const std::string port = has_port ? "" : (scheme == "https" ? ":443" : ":80");
  return scheme + "://" + lower(rest) + port;
}

std::string resolve_location(std::string_view base_url, std::string_view location) {
  if (location.find("://") != std::string_view::npos) {
    return std::string(location);
  }
  const auto host_start = base_url.find("://") + 3;
  const auto path_start = std::min(base_url.find('/', host_start), base_url.size());
  if (location.starts_with("//")) {
    return std::string(base_url.substr(0, host_start - 2)) + std::string(location);
  }
  if (location.starts_with('/')) {
    return std::string(base_url.substr(0, path_start)) + std::string(location);
  }
  const auto path = base_url.substr(0, base_url.find('?'));
  const auto last_slash = path.rfind('/');
  return std::string(last_slash < path_start ? path.substr(0, path_start)
                                             : path.substr(0, last_slash)) +
         "/" + std::string(location);
}

std::string percent_encode(std::string_view text, std::string_view keep) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain =
        std::isalnum(byte) != 0 || std::string_view("-_.~").find(c) != std::string_view::npos;
    if (plain || keep.find(c) != std::string_view::npos) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

}  // namespace graft::hub

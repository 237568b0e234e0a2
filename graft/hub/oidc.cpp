#include "graft/hub/oidc.h"

#include <algorithm>
#include <chrono>
#include <mutex>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/hub/environment.h"
#include "graft/hub/http.h"
#include "graft/hub/payload.h"
#include "graft/hub/url.h"

namespace graft::hub {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTries = 3;
constexpr uint64_t kMaxAnswerBytes = 1 << 20;
constexpr int64_t kUsualSeconds = 3600, kMostSeconds = 86'400;
constexpr std::chrono::seconds kMargin{300};

std::string variable(const char* name) { return env::get(name).value_or(""); }

std::string ask(HttpRequest request, const std::string& what) {
  request.max_body_bytes = kMaxAnswerBytes;
  const HttpResponse response = http_send_with_retries(request, kTries, request_deadline());
  if (response.status != 200) {
    throw NotFound("hub.oidc", "refused",
                   fmt::format("{}: expected status 200, got {}", what, response.status),
                   "unset HF_OIDC_RESOURCE to use HF_TOKEN or the file `token` instead");
  }
  return response.body;
}

// What GitHub vouches for, to whoever is named as its audience.
std::string github_id_token(const std::string& audience) {
  const std::string url = variable("ACTIONS_ID_TOKEN_REQUEST_URL"),
                    token = variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN");
  if (url.empty() || token.empty()) {
    throw NotFound("hub.oidc", "id-token",
                   "HF_OIDC_RESOURCE: expected an id token of GitHub Actions, got none",
                   "give the job `permissions: id-token: write`");
  }
  HttpRequest request;
  request.url = fmt::format("{}{}audience={}", url, url.find('?') == std::string::npos ? '?' : '&',
                            percent_encode(audience));
  request.headers["Authorization"] = "Bearer " + token;
  const std::string what = "the id token of GitHub Actions";
  const nlohmann::json answer = parse_answer(ask(std::move(request), what), what);
  return text_field(answer, "value", what);
}

std::string id_token(const std::string& endpoint) {
  if (const std::string given = variable("HF_OIDC_ID_TOKEN"); !given.empty()) {
    return given;
  }
  if (variable("GITHUB_ACTIONS") == "true") {
    return github_id_token(endpoint);
  }
  throw NotFound("hub.oidc", "id-token",
                 "HF_OIDC_RESOURCE: expected HF_OIDC_ID_TOKEN or a job of GitHub Actions, got none",
                 "set HF_OIDC_ID_TOKEN to what the CI service vouches for, or unset "
                 "HF_OIDC_RESOURCE");
}

struct Exchanged {
  std::string resource, endpoint, token;
  Clock::time_point until;
};

Exchanged exchange(const std::string& endpoint, const std::string& resource) {
  HttpRequest request;
  request.method = "POST";
  request.url = endpoint + "/oauth/token";
  request.headers["Content-Type"] = "application/json";
  request.body = nlohmann::json{
      {"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"},
      {"subject_token_type", "urn:ietf:params:oauth:token-type:id_token"},
      {"subject_token", id_token(endpoint)},
      {"resource",
       resource}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string what = fmt::format("the token for `{}`", resource);
  const nlohmann::json answer = parse_answer(ask(std::move(request), what), what);
  const auto seconds = answer.find("expires_in");
  const int64_t lives_s = seconds != answer.end() && seconds->is_number_integer()
                              ? std::clamp<int64_t>(*seconds, 0, kMostSeconds)
                              : kUsualSeconds;
  return {resource, endpoint, text_field(answer, "access_token", what),
          Clock::now() + std::chrono::seconds(lives_s) - kMargin};
}

}  // namespace

bool oidc_wanted() { return !variable("HF_OIDC_RESOURCE").empty() && !implicit_token_disabled(); }

std::string oidc_token(const std::string& endpoint) {
  static std::mutex mutex;
  static Exchanged last;
  const std::lock_guard lock(mutex);
  const std::string resource = variable("HF_OIDC_RESOURCE");
  if (last.token.empty() || last.resource != resource || last.endpoint != endpoint ||
      Clock::now() > last.until) {
    last = exchange(endpoint, resource);
  }
  return last.token;
}

}  // namespace graft::hub

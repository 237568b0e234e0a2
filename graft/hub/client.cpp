#include "graft/hub/client.h"

#include <algorithm>
#include <regex>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/hub/answers.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/environment.h"
#include "graft/hub/oidc.h"
#include "graft/hub/payload.h"
#include "graft/hub/url.h"

namespace graft::hub {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxAnswerBytes = 16 << 20;
constexpr int kMaxRedirects = 5;
constexpr int kMaxPages = 100;

std::string_view api_folder(RepoType type) {
  return type == RepoType::kModel ? "models" : "kernels";
}

void require_repo_id(std::string_view repo_id) {
  if (!is_repo_id(repo_id)) {
    throw InvalidArgument("hub.client", "repo-id",
                          fmt::format("repo_id: expected `org/name`, got `{}`", repo_id));
  }
}

// Where an answer that is no success sends its asker on to; any other is thrown.
std::string redirect_target(const std::string& url, const HttpResponse& response,
                            const std::string& what) {
  const std::string& location = response.header("location");
  if (response.status / 100 != 3 || location.empty()) {
    Client::throw_status(response, what);
  }
  std::string target = resolve_location(url, location);
  if (url_origin(url).starts_with("https:") && !url_origin(target).starts_with("https:")) {
    throw NetworkError("hub.client", "downgrade",
                       fmt::format("{}: expected a redirect that stays encrypted, got `{}`", what,
                                   without_query(target)));
  }
  return target;
}

[[noreturn]] void throw_redirects(const std::string& what) {
  throw NetworkError(
      "hub.client", "redirects",
      fmt::format("{}: expected at most {} redirects, got more", what, kMaxRedirects));
}

// The Authorization header that a server repeats in its message stays out of ours.
std::string said_by_server(const HttpResponse& response) {
  constexpr size_t kMaxShownBytes = 500;
  static const std::regex kSecret("hf_[A-Za-z0-9_]+|[Bb]earer +[^ ]+");
  return std::regex_replace(response.header("x-error-message").substr(0, kMaxShownBytes), kSecret,
                            "(token)");
}

}  // namespace

Client::Client(ClientOptions options)
    : endpoint_(options.endpoint.empty() ? hub::endpoint() : std::move(options.endpoint)),
      asks_for_token_(!options.token && oidc_wanted()),
      token_(options.token ? *options.token : hub::token().value_or("")),
      answers_stay_(options.answers_stay),
      max_tries_(options.max_tries),
      deadline_(options.deadline.value_or(request_deadline())) {}

void Client::throw_status(const HttpResponse& response, const std::string& what) {
  const std::string& code = response.header("x-error-code");
  const auto text = fmt::format("{}: expected status 200, got {} {} {}", what, response.status,
                                code, said_by_server(response));
  const auto not_found = [&](const char* reason, const char* hint) {
    throw NotFound("hub.client", reason, text, hint);
  };
  if (code == "GatedRepo") {
    not_found("gated", "ask for access on the Hub's page of the repository, then set HF_TOKEN");
  }
  if (code == "RevisionNotFound") {
    not_found("revision", "");
  }
  if (code == "EntryNotFound") {
    not_found("file", "");
  }
  if (response.status == 403) {
    not_found("forbidden", "the token has no right to this repository");
  }
  if (response.status == 401 && code != "RepoNotFound") {
    not_found("unauthorized", "set HF_TOKEN, or write the token into `token` under HF_HOME");
  }
  if (response.status == 401 || response.status == 404) {
    not_found("repository",
              "check the name; a private repository needs HF_TOKEN or the file `token` under "
              "HF_HOME");
  }
  if (response.status == 407) {
    throw NetworkError(
        "hub.http", "proxy", text,
        "give the proxy's user and password in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY");
  }
  if (response.status == 429) {
    throw NetworkError("hub.client", "rate-limit", text,
                       fmt::format("wait {} s and try again", retry_after(response).count()));
  }
  if (is_transient_status(response.status)) {
    throw NetworkError("hub.client", "status", text);
  }
  throw NetworkError("hub.client", "unexpected-status", text);
}

std::string Client::token() const { return asks_for_token_ ? oidc_token(endpoint_) : token_; }

HttpRequest Client::api_request(const std::string& url) const {
  if (offline()) {
    throw NetworkError("hub.client", "offline",
                       fmt::format("`{}`: expected to be online, but HF_HUB_OFFLINE is set", url),
                       "unset HF_HUB_OFFLINE, or fetch the files beforehand with `graft download`");
  }
  HttpRequest request;
  request.url = url;
  request.max_body_bytes = kMaxAnswerBytes;
  if (url_origin(url) == url_origin(endpoint_)) {
    if (const std::string own = token(); !own.empty()) {
      request.headers["Authorization"] = "Bearer " + own;
    }
  }
  return request;
}

HttpResponse Client::get_api(const std::string& first_url, const std::string& what) const {
  std::string url = first_url;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpResponse response = http_send_with_retries(api_request(url), max_tries_, deadline_);
    if (response.status == 200) {
      return response;
    }
    url = redirect_target(url, response, what);
  }
  throw_redirects(what);
}

std::string Client::get_remembered(const std::string& url, const std::string& what) const {
  // What one token may see is not what another may.
  const std::string key = url + " " + sha256_of(asks_for_token_ ? "oidc" : token_);
  if (answers_stay_.count() > 0) {
    if (auto answer = recall_answer(key, answers_stay_)) {
      return *answer;
    }
  }
  std::string body = get_api(url, what).body;
  remember_answer(key, body);
  return body;
}

std::string Client::resolve_commit(RepoType type, std::string_view repo_id,
                                   std::string_view revision) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("`{}`@`{}`", repo_id, revision);
  const auto url = fmt::format("{}/api/{}/{}/revision/{}", endpoint_, api_folder(type), repo_id,
                               percent_encode(revision));
  const json answer = parse_answer(get_api(url, what).body, what);
  const std::string& commit = text_field(answer, "sha", what);
  if (!is_commit(commit)) {
    throw_not_the_hub(what, "a commit that is not 40 hexadecimal digits");
  }
  return commit;
}

GitRefs Client::list_refs(RepoType type, std::string_view repo_id) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("refs of `{}`", repo_id);
  const auto url = fmt::format("{}/api/{}/{}/refs", endpoint_, api_folder(type), repo_id);
  const json answer = parse_answer(get_remembered(url, what), what);
  if (!answer.is_object()) {
    throw_not_the_hub(what, "an answer that is no object");
  }
  return {parse_refs(answer.value("branches", json::array()), what),
          parse_refs(answer.value("tags", json::array()), what)};
}

bool Client::is_trusted_publisher(std::string_view organisation) const {
  const auto what = fmt::format("publisher `{}`", organisation);
  try {
    const json answer =
        parse_answer(get_remembered(fmt::format("{}/api/organizations/{}/overview", endpoint_,
                                                percent_encode(organisation)),
                                    what),
                     what);
    const auto flag = answer.find("trustedKernelPublisher");
    return answer.is_object() && flag != answer.end() && flag->is_boolean() && flag->get<bool>();
  } catch (const NotFound&) {
    return false;
  }
}

std::string Client::tree_url(RepoType type, std::string_view repo_id, std::string_view commit,
                             std::string_view folder) const {
  auto url = fmt::format("{}/api/{}/{}/tree/{}", endpoint_, api_folder(type), repo_id,
                         percent_encode(commit));
  return folder.empty() ? url : url + "/" + percent_encode(folder);
}

template <typename Visitor>
std::string Client::visit_page(const std::string& url, const std::string& what,
                               const Visitor& visit) const {
  const HttpResponse response = get_api(url, what);
  const json answer = parse_answer(response.body, what);
  if (!answer.is_array()) {
    throw_not_the_hub(what, "an answer that is no list");
  }
  for (const auto& entry : answer) {
    visit(text_field(entry, "type", what), entry);
  }
  const auto next = next_page(response);
  return next.empty() ? "" : resolve_location(url, next);
}

template <typename Visitor>
void Client::visit_tree(const std::string& first_url, const std::string& what,
                        const Visitor& visit) const {
  std::string url = first_url;
  for (int page = 0; !url.empty(); ++page) {
    if (page == kMaxPages) {
      throw_not_the_hub(what, fmt::format("more than {} pages", kMaxPages));
    }
    url = visit_page(url, what, visit);
  }
}

namespace {

std::string files_of(std::string_view repo_id, std::string_view commit) {
  return fmt::format("files of `{}`@`{}`", repo_id, commit);
}

// Adds the files of a tree to a list.
auto collect_into(std::vector<RepoFile>& files, const std::string& what) {
  return [&files, &what](const std::string& kind, const json& entry) {
    if (kind == "file") {
      files.push_back(parse_file(entry, what));
    }
  };
}

}  // namespace

std::vector<RepoFile> Client::list_files(RepoType type, std::string_view repo_id,
                                         std::string_view commit, std::string_view folder) const {
  require_repo_id(repo_id);
  const auto what = files_of(repo_id, commit);
  std::vector<RepoFile> files;
  visit_tree(tree_url(type, repo_id, commit, folder) + "?recursive=true&expand=false", what,
             collect_into(files, what));
  return files;
}

std::optional<std::vector<RepoFile>> Client::list_few_files(RepoType type, std::string_view repo_id,
                                                            std::string_view commit,
                                                            std::string_view folder) const {
  require_repo_id(repo_id);
  const auto what = files_of(repo_id, commit);
  std::vector<RepoFile> files;
  const bool is_all =
      visit_page(tree_url(type, repo_id, commit, folder) + "?recursive=true&expand=false", what,
                 collect_into(files, what))
          .empty();
  return is_all ? std::optional(std::move(files)) : std::nullopt;
}

std::vector<RepoFile> Client::list_folder(RepoType type, std::string_view repo_id,
                                          std::string_view commit, std::string_view folder) const {
  require_repo_id(repo_id);
  const auto what = files_of(repo_id, commit);
  std::vector<RepoFile> files;
  visit_tree(tree_url(type, repo_id, commit, folder) + "?recursive=false&expand=false", what,
             collect_into(files, what));
  return files;
}

std::vector<std::string> Client::list_folders(RepoType type, std::string_view repo_id,
                                              std::string_view commit,
                                              std::string_view folder) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("folder `{}` of `{}`@`{}`", folder, repo_id, commit);
  std::vector<std::string> names;
  visit_tree(tree_url(type, repo_id, commit, folder) + "?recursive=false&expand=false", what,
             [&](const std::string& kind, const json& entry) {
               const std::string& path = text_field(entry, "path", what);
               if (!is_safe_path(path)) {
                 throw_not_the_hub(what, "an entry that cannot be one");
               }
               if (kind == "directory") {
                 names.push_back(path.substr(path.rfind('/') + 1));
               }
             });
  return names;
}

ReadResult Client::read_file(RepoType type, std::string_view repo_id, std::string_view commit,
                             const RepoFile& file, uint64_t begin, uint64_t end,
                             const FileSink& sink) const {
  require_repo_id(repo_id);
  end = std::min(end, file.size_bytes);
  const auto what = fmt::format("`{}`@`{}` `{}`", repo_id, commit, file.path);
  const bool whole = begin == 0 && end == file.size_bytes;
  std::string url =
      fmt::format("{}/{}{}/resolve/{}/{}", endpoint_, type == RepoType::kKernel ? "kernels/" : "",
                  repo_id, percent_encode(commit), percent_encode(file.path, "/"));
  ReadResult result;
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpRequest request = api_request(url);
    request.headers["Accept-Encoding"] = "identity";
    if (!whole) {
      request.headers["Range"] = fmt::format("bytes={}-{}", begin, end - 1);
    }
    request.timeout = std::chrono::milliseconds(0);  // the stall limit holds instead
    request.stall_timeout = std::min(stall_timeout(), request_deadline());
    std::optional<uint64_t> position;
    request.sink = [&](std::string_view piece, const HttpResponse& response) {
      if (!position) {
        position = first_byte(response, {begin, end, file.size_bytes}, what);
        result.ranges_ignored = !whole && response.status == 200;
      }
      const uint64_t at = *position;
      *position += piece.size();
      if (*position > (result.ranges_ignored ? file.size_bytes : end)) {
        throw NetworkError("hub.http", "too-large",
                           fmt::format("{}: expected {} bytes, got more", what, file.size_bytes));
      }
      return sink(at, piece);
    };
    request.max_body_bytes = file.size_bytes;
    result.response = http_send(request);
    if (result.response.status / 100 == 2 || result.is_transient()) {
      return result;
    }
    url = redirect_target(url, result.response, what);
  }
  throw_redirects(what);
}

}  // namespace graft::hub

#include "graft/hub/client.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/hub/answers.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

using nlohmann::json;

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

[[noreturn]] void throw_not_the_hub(const std::string& what, const std::string& detail) {
  throw FormatError(
      "hub.client", "not-the-hub",
      fmt::format("{}: expected an answer of the Hub, got {}", what, detail),
      "a proxy or a login page may have answered; check HF_ENDPOINT and the proxy variables");
}

json parse_answer(const std::string& body, const std::string& what) {
  json parsed = json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    throw_not_the_hub(what, fmt::format("{} bytes that are no JSON", body.size()));
  }
  return parsed;
}

const std::string& text_field(const json& object, const char* key, const std::string& what) {
  const auto found = object.find(key);
  if (!object.is_object() || found == object.end() || !found->is_string()) {
    throw_not_the_hub(what, fmt::format("an answer without text field `{}`", key));
  }
  return found->get_ref<const std::string&>();
}

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

RepoFile parse_file(const json& entry, const std::string& what) {
  RepoFile file;
  file.path = text_field(entry, "path", what);
  file.git_oid = text_field(entry, "oid", what);
  const auto size = entry.find("size");
  if (!is_safe_path(file.path) || !is_hex(file.git_oid, 40) || size == entry.end() ||
      !size->is_number_unsigned()) {
    throw_not_the_hub(
        what, fmt::format("a file entry that cannot be one: `{}`", file.path.substr(0, 200)));
  }
  file.size_bytes = size->get<uint64_t>();
  if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
    file.sha256 = text_field(*lfs, "oid", what);
    if (!is_hex(file.sha256, 64)) {
      throw_not_the_hub(what, fmt::format("a SHA-256 of `{}` that cannot be one", file.path));
    }
  }
  if (const auto xet = entry.find("xetHash");
      xet != entry.end() && xet->is_string() && is_hex(xet->get_ref<const std::string&>(), 64)) {
    file.xet_hash = xet->get<std::string>();
  }
  return file;
}

// The URL in `Link: <url>; rel="next"`, or an empty text.
std::string next_page(const HttpResponse& response) {
  const std::string& link = response.header("link");
  const auto open = link.find('<'), close = link.find('>');
  if (open == std::string::npos || close == std::string::npos ||
      link.find("rel=\"next\"", close) == std::string::npos) {
    return {};
  }
  return link.substr(open + 1, close - open - 1);
}

std::map<std::string, std::string> parse_refs(const json& list, const std::string& what) {
  std::map<std::string, std::string> refs;
  for (const auto& entry : list) {
    const auto& commit = text_field(entry, "targetCommit", what);
    const auto& name = text_field(entry, "name", what);
    if (!is_commit(commit) || !refs.emplace(name, commit).second) {
      throw_not_the_hub(what, fmt::format("a ref that is listed twice or is no commit: `{}`",
                                          name.substr(0, 200)));
    }
  }
  return refs;
}

}  // namespace

Client::Client(ClientOptions options)
    : endpoint_(options.endpoint.empty() ? hub::endpoint() : std::move(options.endpoint)),
      token_(options.token ? *options.token : hub::token().value_or("")),
      answers_stay_(options.answers_stay),
      max_tries_(options.max_tries),
      deadline_(options.deadline) {}

void Client::throw_status(const HttpResponse& response, const std::string& what) {
  const std::string& code = response.header("x-error-code");
  const auto text = fmt::format("{}: expected status 200, got {} {} {}", what, response.status,
                                code, response.header("x-error-message").substr(0, 500));
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
  if (response.status == 429) {
    throw NetworkError("hub.client", "rate-limit", text,
                       fmt::format("wait {} s and try again", retry_after(response).count()));
  }
  throw NetworkError("hub.client", "status", text);
}

HttpRequest Client::api_request(const std::string& url) const {
  if (offline()) {
    throw NetworkError("hub.client", "offline",
                       fmt::format("`{}`: expected to be online, but HF_HUB_OFFLINE is set", url),
                       "unset HF_HUB_OFFLINE, or fetch the files beforehand with `graft download`");
  }
  HttpRequest request;
  request.url = url;
  if (!token_.empty() && url_origin(url) == url_origin(endpoint_)) {
    request.headers["Authorization"] = "Bearer " + token_;
  }
  return request;
}

HttpResponse Client::get_api(const std::string& url, const std::string& what) const {
  HttpResponse response = http_send_with_retries(api_request(url), max_tries_, deadline_);
  if (response.status != 200) {
    throw_status(response, what);
  }
  return response;
}

std::string Client::get_remembered(const std::string& url, const std::string& what) const {
  // What one token may see is not what another may.
  const std::string key = url + " " + sha256_of(token_);
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
  const auto what = fmt::format("`{}`@`{}` `{}`", repo_id, commit, file.path);
  const bool whole = begin == 0 && end >= file.size_bytes;
  const std::string range_start = fmt::format("bytes {}-", begin);
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
    request.max_body_bytes = file.size_bytes;
    uint64_t position = begin;
    bool started = false;
    request.sink = [&](std::string_view piece, const HttpResponse& response) {
      if (!started) {
        if (response.status == 200) {
          result.ranges_ignored = !whole;
          position = 0;
        } else if (!response.header("content-range").starts_with(range_start)) {
          throw_not_the_hub(what, fmt::format("range `{}` instead of `{}…`",
                                              response.header("content-range"), range_start));
        }
        started = true;
      }
      const uint64_t at = position;
      position += piece.size();
      return sink(at, piece);
    };
    result.response = http_send(request);
    const int status = result.response.status;
    if (status / 100 == 2 || result.is_transient()) {
      return result;
    }
    if (status / 100 != 3 || result.response.header("location").empty()) {
      throw_status(result.response, what);
    }
    url = resolve_location(url, result.response.header("location"));
    url_origin(url);  // refuses file:// and the like before anything is sent
  }
  throw NetworkError(
      "hub.client", "redirects",
      fmt::format("{}: expected at most {} redirects, got more", what, kMaxRedirects));
}

}  // namespace graft::hub

#include "graft/hub/client.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

using nlohmann::json;

constexpr int kMaxRedirects = 5;
constexpr int kMaxPages = 100;
constexpr size_t kMaxPathBytes = 1024;

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

// Error statuses as errors with the Hub's own words.
[[noreturn]] void throw_status(const HttpResponse& response, const std::string& what) {
  const std::string& code = response.header("x-error-code");
  const std::string& message = response.header("x-error-message");
  const auto text =
      fmt::format("{}: expected status 200, got {} {} {}", what, response.status, code, message);
  if (code == "GatedRepo" || response.status == 403) {
    throw NotFound("hub.client", "gated", text,
                   "ask for access on the Hub's page of the repository, then set HF_TOKEN");
  }
  if (code == "RevisionNotFound") {
    throw NotFound("hub.client", "revision", text);
  }
  if (code == "EntryNotFound") {
    throw NotFound("hub.client", "file", text);
  }
  if (response.status == 401 || response.status == 404) {
    throw NotFound(
        "hub.client", "repository", text,
        "check the name; a private repository needs HF_TOKEN or the file `token` under HF_HOME");
  }
  if (response.status == 429) {
    throw NetworkError("hub.client", "rate-limit", text,
                       fmt::format("wait {} s and try again", response.header("retry-after")));
  }
  throw NetworkError("hub.client", "status", text);
}

json parse_answer(const HttpResponse& response, const std::string& what) {
  json parsed = json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    throw_not_the_hub(what, fmt::format("{} bytes that are no JSON", response.body.size()));
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

// A listing becomes paths in the cache: only relative, plain ones may pass.
bool is_safe_path(std::string_view path) {
  if (path.empty() || path.size() > kMaxPathBytes || path.front() == '/') {
    return false;
  }
  if (std::any_of(path.begin(), path.end(),
                  [](unsigned char c) { return c < 0x20 || c == '\\' || c == 0x7f || c == ':'; })) {
    return false;
  }
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const auto part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) {
      return false;
    }
    start = end + 1;
  }
  return true;
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
      token_(options.token ? *options.token : hub::token().value_or("")) {}

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
  HttpResponse response = http_send_with_retries(api_request(url));
  if (response.status != 200) {
    throw_status(response, what);
  }
  return response;
}

std::string Client::resolve_commit(RepoType type, std::string_view repo_id,
                                   std::string_view revision) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("`{}`@`{}`", repo_id, revision);
  const auto url = fmt::format("{}/api/{}/{}/revision/{}", endpoint_, api_folder(type), repo_id,
                               percent_encode(revision));
  const json answer = parse_answer(get_api(url, what), what);
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
  const json answer = parse_answer(get_api(url, what), what);
  return {parse_refs(answer.value("branches", json::array()), what),
          parse_refs(answer.value("tags", json::array()), what)};
}

std::vector<RepoFile> Client::list_files(RepoType type, std::string_view repo_id,
                                         std::string_view commit, std::string_view folder) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("files of `{}`@`{}`", repo_id, commit);
  auto url = fmt::format("{}/api/{}/{}/tree/{}", endpoint_, api_folder(type), repo_id,
                         percent_encode(commit));
  if (!folder.empty()) {
    url += "/" + percent_encode(folder);
  }
  url += "?recursive=true&expand=false";
  std::vector<RepoFile> files;
  for (int page = 0; !url.empty(); ++page) {
    if (page == kMaxPages) {
      throw_not_the_hub(what, fmt::format("more than {} pages", kMaxPages));
    }
    const HttpResponse response = get_api(url, what);
    const json answer = parse_answer(response, what);
    if (!answer.is_array()) {
      throw_not_the_hub(what, "an answer that is no list");
    }
    for (const auto& entry : answer) {
      if (text_field(entry, "type", what) == "file") {
        files.push_back(parse_file(entry, what));
      }
    }
    const auto next = next_page(response);
    url = next.empty() ? "" : resolve_location(url, next);
  }
  return files;
}

void Client::read_file(RepoType type, std::string_view repo_id, std::string_view commit,
                       const RepoFile& file, uint64_t offset, const FileSink& sink) const {
  require_repo_id(repo_id);
  const auto what = fmt::format("`{}`@`{}` `{}`", repo_id, commit, file.path);
  std::string url =
      fmt::format("{}/{}{}/resolve/{}/{}", endpoint_, type == RepoType::kKernel ? "kernels/" : "",
                  repo_id, percent_encode(commit), percent_encode(file.path, "/"));
  const std::string range_start = fmt::format("bytes {}-", offset);
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    HttpRequest request = api_request(url);
    request.headers["Accept-Encoding"] = "identity";
    if (offset > 0) {
      request.headers["Range"] = fmt::format("bytes={}-", offset);
    }
    request.timeout = std::chrono::milliseconds(0);  // the stall limit holds instead
    request.max_body_bytes = file.size_bytes;
    uint64_t position = offset;
    bool started = false;
    request.sink = [&](std::string_view piece, const HttpResponse& response) {
      if (!started && response.status == 200) {
        position = 0;  // the server sends the whole file
      } else if (!started && !response.header("content-range").starts_with(range_start)) {
        throw_not_the_hub(what, fmt::format("range `{}` instead of `{}…`",
                                            response.header("content-range"), range_start));
      }
      started = true;
      const uint64_t at = position;
      position += piece.size();
      return sink(at, piece);
    };
    const HttpResponse response = http_send(request);
    if (response.status / 100 == 2) {
      return;
    }
    if (response.status / 100 != 3 || response.header("location").empty()) {
      throw_status(response, what);
    }
    url = resolve_location(url, response.header("location"));
    url_origin(url);  // refuses file:// and the like before anything is sent
  }
  throw NetworkError(
      "hub.client", "redirects",
      fmt::format("{}: expected at most {} redirects, got more", what, kMaxRedirects));
}

}  // namespace graft::hub

#include "graft/hub/server/protocol.h"

#include <algorithm>
#include <array>
#include <random>

#include <fmt/format.h>

#include "graft/hub/server/answers.h"
#include "graft/hub/url.h"

namespace graft::hub::server {

namespace {

using nlohmann::ordered_json;

bool is_true(std::string_view text) { return text == "true" || text == "True" || text == "1"; }

// `models` of a path to `model`; empty for anything else.
std::string type_of(std::string_view plural) {
  constexpr std::array<std::string_view, 4> kPlurals = {"models", "kernels", "datasets", "spaces"};
  return std::find(kPlurals.begin(), kPlurals.end(), plural) == kPlurals.end()
             ? std::string()
             : std::string(plural.substr(0, plural.size() - 1));
}

std::string host_name(const std::string& host) {
  const auto colon = host.rfind(':');
  return colon == std::string::npos || host.find(']', colon) != std::string::npos
             ? host
             : host.substr(0, colon);
}

enum class Asker { kNobody, kUser, kStranger };

std::pair<Asker, std::string> asker(const Request& request, const AccessRules& access) {
  constexpr std::string_view kBearer = "Bearer ";
  const auto& header = request.header("authorization");
  if (!header.starts_with(kBearer) || access.users.empty()) {
    return {Asker::kNobody, {}};
  }
  const auto user = access.users.find(header.substr(kBearer.size()));
  return user == access.users.end() ? std::pair(Asker::kStranger, std::string())
                                    : std::pair(Asker::kUser, user->second);
}

std::string random_secret() {
  std::random_device device;
  std::string text;
  for (int i = 0; i < 8; ++i) {
    text += fmt::format("{:08x}", device());
  }
  return text;
}

}  // namespace

struct Protocol::Asked {
  const Request& request;
  const Target& target;
  std::string type;
  std::string id;
  size_t rest = 0;  // the first segment after the id
  std::string revision;
  std::shared_ptr<const Repository> repository;
  TreePtr tree;
};

Protocol::Protocol(Repositories& repositories, ProtocolOptions options)
    : repositories_(repositories), options_(options), secret_(random_secret()) {}

Answer Protocol::answer(const Request& request, const Target& target) {
  const auto& segments = target.segments;
  if (request.method != "GET" && request.method != "HEAD" && request.method != "POST") {
    return refusal(405, "", "This Hub is read-only");
  }
  if (asker(request, repositories_.access()).first == Asker::kStranger) {
    return refusal(401, "", "Invalid credentials in Authorization header");
  }
  Asked asked{request, target, {}, {}, 0, {}, nullptr, nullptr};
  if (segments.size() >= 2 && segments[0] == "api") {
    return api(asked);
  }
  if (segments.size() >= 8 && segments[0] == ".graft" && segments[1] == "large") {
    return large_file(asked);
  }
  // Models have no prefix: /<org>/<name>/resolve/<revision>/<path>
  const size_t first = !segments.empty() && !type_of(segments[0]).empty() ? 1 : 0;
  if (segments.size() >= first + 5 && segments[first + 2] == "resolve") {
    asked.type = first == 0 ? "model" : type_of(segments[0]);
    asked.id = segments[first] + "/" + segments[first + 1];
    asked.rest = first + 2;
    return resolve(asked);
  }
  return refusal(404, "", "Sorry, we can't find the page you are looking for.");
}

Answer Protocol::api(Asked& asked) {
  const auto& segments = asked.target.segments;
  if (segments[1] == "whoami-v2") {
    return who_am_i(asked.request);
  }
  if (segments.size() == 4 && segments[1] == "organizations" && segments[3] == "overview") {
    return publisher(segments[2]);
  }
  asked.type = type_of(segments[1]);
  if (!asked.type.empty() && segments.size() == 2) {
    return list(asked.type, asked.target, asked.request);
  }
  if (asked.type.empty() || segments.size() < 4) {
    return refusal(404, "", "Sorry, we can't find the page you are looking for.");
  }
  asked.id = segments[2] + "/" + segments[3];
  asked.rest = 4;
  Answer refused;
  const std::string what = segments.size() > 4 ? segments[4] : "";
  if (what == "refs") {
    return find_repository(asked, refused) ? refs(asked) : refused;
  }
  if (what.empty() || what == "revision" || what == "tree" || what == "paths-info") {
    const bool named = segments.size() > 5;
    if (!find_tree(asked, named ? segments[5] : "main", refused)) {
      return refused;
    }
    return what == "tree" ? tree(asked) : what == "paths-info" ? paths_info(asked) : info(asked);
  }
  return refusal(404, "", "Sorry, we can't find the page you are looking for.");
}

bool Protocol::may_see(Asked& asked, Answer& refused) {
  const auto& access = repositories_.access();
  const auto& rules = access.of(asked.id);
  const auto [who, name] = asker(asked.request, access);
  if (!rules.is_private ||
      (who == Asker::kUser && (rules.readers.empty() || rules.readers.contains(name)))) {
    return true;
  }
  // As the Hub: who is not known cannot learn whether a repository exists.
  refused = refusal(who == Asker::kNobody ? 401 : 404, "RepoNotFound", "Repository not found");
  return false;
}

bool Protocol::find_repository(Asked& asked, Answer& refused) {
  if (!may_see(asked, refused)) {
    return false;
  }
  asked.repository = repositories_.find(asked.type, asked.id);
  if (asked.repository == nullptr) {
    refused = refusal(404, "RepoNotFound", "Repository not found");
  }
  return asked.repository != nullptr;
}

// A commit that was seen before is not looked for in the folder again: one listing serves all the
// files of a download.
bool Protocol::find_tree(Asked& asked, const std::string& revision, Answer& refused) {
  if (!may_see(asked, refused)) {
    return false;
  }
  asked.revision = revision;
  asked.tree = repositories_.known_commit(asked.type, asked.id, revision);
  if (asked.tree != nullptr) {
    return true;
  }
  if (!find_repository(asked, refused)) {
    return false;
  }
  asked.tree = asked.repository->tree(revision);
  if (asked.tree == nullptr) {
    refused = refusal(404, "RevisionNotFound", "Invalid rev id: " + revision);
  }
  return asked.tree != nullptr;
}

bool Protocol::may_read_files(Asked& asked, Answer& refused) {
  const auto& access = repositories_.access();
  const auto& rules = access.of(asked.id);
  const auto [who, name] = asker(asked.request, access);
  if (!rules.gated || (who == Asker::kUser && rules.readers.contains(name))) {
    return true;
  }
  refused = refusal(who == Asker::kUser ? 403 : 401, "GatedRepo",
                    fmt::format("Access to model {} is restricted and you are not in the "
                                "authorized list.",
                                asked.id));
  return false;
}

Answer Protocol::info(Asked& asked) {
  return json_answer(repository_info(asked.type, asked.id, *asked.tree,
                                     repositories_.access().of(asked.id),
                                     is_true(asked.target.param("blobs"))));
}

Answer Protocol::list(const std::string& type, const Target& target, const Request& request) {
  auto rows = ordered_json::array();
  const auto& author = target.param("author");
  const auto limit = parse_number(target.param("limit")).value_or(options_.page_size);
  for (const auto& id : repositories_.ids(type)) {
    Asked asked{request, target, type, id, 0, {}, nullptr, nullptr};
    Answer refused;
    if (rows.size() < limit && (author.empty() || id.starts_with(author + "/")) &&
        id.find(target.param("search")) != std::string::npos && find_repository(asked, refused)) {
      rows.push_back({{"id", id}, {"private", repositories_.access().of(id).is_private}});
    }
  }
  return json_answer(rows);
}

Answer Protocol::refs(Asked& asked) { return json_answer(refs_json(*asked.repository)); }

Answer Protocol::tree(Asked& asked) {
  const auto& segments = asked.target.segments;
  const auto folder = joined(segments, 6);
  const bool recursive = is_true(asked.target.param("recursive"));
  const auto entries = tree_entries(*asked.tree, folder, recursive);
  if (entries.empty() && !folder.empty()) {
    return refusal(404, "EntryNotFound",
                   fmt::format("{} does not exist on \"{}\"", folder, asked.revision));
  }
  const auto begin =
      std::min<uint64_t>(parse_number(asked.target.param("cursor")).value_or(0), entries.size());
  const auto asked_for = parse_number(asked.target.param("limit")).value_or(options_.page_size);
  const auto count = std::clamp<uint64_t>(asked_for, 1, options_.page_size);
  const auto end = std::min<uint64_t>(begin + count, entries.size());
  auto rows = ordered_json::array();
  for (uint64_t i = begin; i < end; ++i) {
    rows.push_back(entries[i]);
  }
  auto answer = json_answer(rows);
  if (end < entries.size()) {
    // The path as it was sent: a decoded `%2F` would be another path.
    const auto& sent = asked.request.target;
    answer.headers["Link"] =
        fmt::format("<http://{}{}?recursive={}&expand={}&limit={}&cursor={}>; rel=\"next\"",
                    asked.request.header("host"), sent.substr(0, sent.find('?')), recursive,
                    is_true(asked.target.param("expand")), count, end);
  }
  return answer;
}

Answer Protocol::paths_info(Asked& asked) {
  if (asked.request.method != "POST") {
    return refusal(405, "", "paths-info: expected POST");
  }
  std::vector<std::string> paths;
  if (asked.request.header("content-type").starts_with("application/json")) {
    const auto json = nlohmann::json::parse(asked.request.body, nullptr, false);
    const auto list = json.is_object() ? json.value("paths", nlohmann::json()) : nlohmann::json();
    for (const auto& path : list) {
      paths.push_back(path.is_string() ? path.get<std::string>() : std::string());
    }
  } else {
    for (const auto& [key, value] : parse_form(asked.request.body)) {
      if (key == "paths") {
        paths.push_back(value);
      }
    }
  }
  auto rows = ordered_json::array();
  for (const auto& path : paths) {
    if (auto entry = tree_entry(*asked.tree, path); !entry.is_null()) {
      rows.push_back(std::move(entry));
    }
  }
  return json_answer(rows);
}

Answer Protocol::resolve(Asked& asked) {
  const auto& segments = asked.target.segments;
  Answer refused;
  if (!find_tree(asked, segments[asked.rest + 1], refused) || !may_read_files(asked, refused)) {
    return refused;
  }
  const auto path = joined(segments, asked.rest + 2);
  const auto found = asked.tree->files.find(path);
  if (found == asked.tree->files.end()) {
    auto answer = refusal(404, "EntryNotFound", "Entry not found");
    answer.headers["X-Repo-Commit"] = asked.tree->commit;
    return answer;
  }
  const auto& file = found->second;
  if (!file.large) {
    return file_answer(asked, file);
  }
  const auto place = fmt::format("{}s/{}/{}/{}", asked.type, asked.id, asked.tree->commit, path);
  const auto& host = asked.request.header("host");
  Answer answer;
  answer.status = 302;
  answer.headers["Location"] =
      fmt::format("http://{}/.graft/large/{}/{}",
                  options_.large_file_port == 0
                      ? host
                      : fmt::format("{}:{}", host_name(host), options_.large_file_port),
                  signature(place), percent_encode(place, "/"));
  answer.headers["X-Linked-ETag"] = fmt::format("\"{}\"", file.etag());
  answer.headers["X-Linked-Size"] = fmt::format("{}", file.state.size_bytes);
  answer.headers["X-Repo-Commit"] = asked.tree->commit;
  return answer;
}

// /.graft/large/<signature>/<type>s/<org>/<name>/<commit>/<path>: whoever holds the signature may
// read, without a token, as with the Hub's storage.
Answer Protocol::large_file(Asked& asked) {
  const auto& segments = asked.target.segments;
  const auto place = joined(segments, 3);
  if (segments[2] != signature(place)) {
    return refusal(403, "", "Signature does not match");
  }
  asked.type = type_of(segments[3]);
  asked.id = segments[4] + "/" + segments[5];
  asked.tree = repositories_.known_commit(asked.type, asked.id, segments[6]);
  if (asked.tree == nullptr) {
    return refusal(404, "RevisionNotFound", "Invalid rev id: " + segments[6]);
  }
  const auto found = asked.tree->files.find(joined(segments, 7));
  return found == asked.tree->files.end() ? refusal(404, "EntryNotFound", "Entry not found")
                                          : file_answer(asked, found->second);
}

Answer Protocol::file_answer(Asked& asked, const RepoFile& file) {
  auto open = OpenFile::open_below(repositories_.root(), file.on_disk);
  if (open == nullptr || open->state() != file.state) {
    return refusal(404, "EntryNotFound", "The file is no longer what it was in this commit");
  }
  Answer answer;
  answer.length = open->state().size_bytes;
  answer.file = std::move(open);
  answer.headers = {{"Content-Type", "application/octet-stream"},
                    {"Accept-Ranges", "bytes"},
                    {"ETag", fmt::format("\"{}\"", file.etag())},
                    {"X-Repo-Commit", asked.tree->commit}};
  ByteRange range;
  const auto kind = parse_range(asked.request.header("range"), answer.length, range);
  if (kind == RangeKind::kPart) {
    answer.status = 206;
    answer.headers["Content-Range"] =
        fmt::format("bytes {}-{}/{}", range.offset, range.offset + range.length - 1, answer.length);
    answer.offset = range.offset;
    answer.length = range.length;
  } else if (kind == RangeKind::kUnsatisfiable) {
    auto refused = refusal(416, "", "Range not satisfiable");
    refused.headers["Content-Range"] = fmt::format("bytes */{}", file.state.size_bytes);
    return refused;
  }
  return answer;
}

Answer Protocol::who_am_i(const Request& request) {
  const auto [who, name] = asker(request, repositories_.access());
  if (who != Asker::kUser) {
    return refusal(401, "", "Invalid username or password.");
  }
  return json_answer({{"type", "user"},
                      {"name", name},
                      {"fullname", name},
                      {"orgs", ordered_json::array()},
                      {"auth",
                       {{"type", "access_token"},
                        {"accessToken", {{"displayName", "local"}, {"role", "read"}}}}}});
}

Answer Protocol::publisher(const std::string& name) {
  for (const char* type : {"model", "kernel", "dataset", "space"}) {
    for (const auto& id : repositories_.ids(type)) {
      if (id.starts_with(name + "/")) {
        return json_answer(
            {{"name", name},
             {"fullname", name},
             {"trustedKernelPublisher", repositories_.access().trusted_publishers.contains(name)}});
      }
    }
  }
  return refusal(404, "", "Organization not found");
}

std::string Protocol::signature(std::string_view path) const {
  return sha256_hex(secret_ + "\n" + std::string(path));
}

}  // namespace graft::hub::server

#include "graft/hub/payload.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/printable.h"
#include "graft/io/json.h"

namespace graft::hub {

namespace {

using nlohmann::json;

constexpr io::JsonLimits kLimits{.max_bytes = 16 << 20, .max_depth = 32};

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

void throw_not_the_hub(const std::string& what, const std::string& detail) {
  throw FormatError(
      "hub.client", "not-the-hub",
      fmt::format("{}: expected an answer of the Hub, got {}", what, printable_line(detail)),
      "a proxy or a login page may have answered; check HF_ENDPOINT and the proxy variables");
}

json parse_answer(const std::string& body, const std::string& what) {
  try {
    return io::parse_json(body, "hub.client", what, kLimits);
  } catch (const FormatError& error) {
    throw_not_the_hub(what, fmt::format("{} bytes that are none: {}", body.size(), error.what()));
  }
}

const std::string& text_field(const json& object, const char* key, const std::string& what) {
  const auto found = object.find(key);
  if (!object.is_object() || found == object.end() || !found->is_string()) {
    throw_not_the_hub(what, fmt::format("an answer without text field `{}`", key));
  }
  return found->get_ref<const std::string&>();
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
  if (file.size_bytes > kMaxFileBytes) {
    throw_not_the_hub(what, fmt::format("a file of {} bytes", file.size_bytes));
  }
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

std::string next_page(const HttpResponse& response) {
  const std::string& link = response.header("link");
  const auto open = link.find('<'), close = link.find('>');
  if (open == std::string::npos || close == std::string::npos || close < open ||
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

uint64_t first_byte(const HttpResponse& response, const FilePart& asked, const std::string& what) {
  if (const auto& encoding = response.header("content-encoding");
      !encoding.empty() && encoding != "identity") {
    throw_not_the_hub(what, fmt::format("the encoding `{}` instead of plain bytes", encoding));
  }
  if (response.status == 200) {
    return 0;
  }
  const auto expected = fmt::format("bytes {}-{}/{}", asked.begin, asked.end - 1, asked.size_bytes);
  if (response.status != 206 || response.header("content-range") != expected) {
    throw_not_the_hub(what, fmt::format("status {} and range `{}` instead of `{}`", response.status,
                                        response.header("content-range"), expected));
  }
  return asked.begin;
}

void require_distinct_paths(const std::vector<RepoFile>& files, const std::string& what) {
  std::vector<std::string_view> paths;
  paths.reserve(files.size());
  for (const RepoFile& file : files) {
    paths.push_back(file.path);
  }
  std::sort(paths.begin(), paths.end());
  for (size_t i = 0; i < paths.size(); ++i) {
    if (i > 0 && paths[i] == paths[i - 1]) {
      throw_not_the_hub(what, fmt::format("`{}` twice", paths[i]));
    }
    for (auto slash = paths[i].find('/'); slash != std::string_view::npos;
         slash = paths[i].find('/', slash + 1)) {
      if (std::binary_search(paths.begin(), paths.end(), paths[i].substr(0, slash))) {
        throw_not_the_hub(what,
                          fmt::format("`{}` as a file and as a folder", paths[i].substr(0, slash)));
      }
    }
  }
}

}  // namespace graft::hub

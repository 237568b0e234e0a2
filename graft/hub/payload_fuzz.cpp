// Whatever a server answers, the client takes it for what it may become on disk, or refuses it. The first
// byte of the input says what kind of answer it is.
#include <cstdint>
#include <string>
#include <string_view>

#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/payload.h"
#include "graft/hub/url.h"

namespace {

using namespace graft::hub;

void require(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

void read_tree(const std::string& body) {
  std::vector<RepoFile> files;
  for (const auto& entry : parse_answer(body, "fuzz")) {
    files.push_back(parse_file(entry, "fuzz"));
    const RepoFile& file = files.back();
    require(is_safe_path(file.path) && is_content_id(file.content_id()));
    require(file.size_bytes <= kMaxFileBytes);
  }
  require_distinct_paths(files, "fuzz");
}

void read_refs(const std::string& body) {
  for (const auto& [name, commit] : parse_refs(parse_answer(body, "fuzz"), "fuzz")) {
    require(is_commit(commit));
  }
}

// `name: value` lines, as libcurl hands them over.
void read_headers(std::string_view text) {
  HttpResponse response;
  response.status = 206;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const auto line = text.substr(begin, end - begin);
    const auto colon = std::min(line.find(':'), line.size());
    response.headers[std::string(line.substr(0, colon))] =
        line.substr(std::min(colon + 1, line.size()));
    begin = end + 1;
  }
  require(retry_after(response).count() >= 0);
  const auto next = next_page(response);
  for (const auto& location : {next, response.header("location")}) {
    const auto target = resolve_location("https://hub.example:8443/a/b?c=d", location);
    const auto origin = url_origin(target);
    require(origin.starts_with("http://") || origin.starts_with("https://"));
    require(origin.find_first_of("@\\/?#", 8) == std::string::npos);
  }
  require(first_byte(response, {5, 10, 20}, "fuzz") == 5);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 3) {
      case 0:
        read_tree(std::string(rest));
        break;
      case 1:
        read_refs(std::string(rest));
        break;
      default:
        read_headers(rest);
    }
  } catch (const graft::FormatError&) {
  } catch (const graft::NetworkError&) {
  }
  return 0;
}

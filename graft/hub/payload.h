// What the Hub's answers hold, read strictly: whoever answers need not be the Hub, and what it says
// becomes paths, sizes and hashes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/hub/client.h"

namespace graft::hub {

// The largest file that a listing may name: 16 TiB, far above what the Hub stores.
inline constexpr uint64_t kMaxFileBytes = 1ULL << 44;

// FormatError `hub.client.not-the-hub`.
[[noreturn]] void throw_not_the_hub(const std::string& what, const std::string& detail);

// One JSON document without duplicate keys, at most 16 MiB and 32 levels deep.
// Throws as throw_not_the_hub; so do all below.
nlohmann::json parse_answer(const std::string& body, const std::string& what);

// A text that must be there.
const std::string& text_field(const nlohmann::json& object, const char* key,
                              const std::string& what);

// An entry of type `file` of a tree: a safe path, a size, git's hash, maybe SHA-256.
RepoFile parse_file(const nlohmann::json& entry, const std::string& what);

// Branches or tags: every name once, every target a commit.
std::map<std::string, std::string> parse_refs(const nlohmann::json& list, const std::string& what);

// The URL in `Link: <url>; rel="next"`, or an empty text.
std::string next_page(const HttpResponse& response);

// A part of a file.
struct FilePart {
  uint64_t begin = 0;
  uint64_t end = 0;  // one past the last byte
  uint64_t size_bytes = 0;
};

// Where in the file the body of a success begins: 0 for the whole file, `asked.begin` for the part
// that was asked for. Any other part, and a body that is encoded, are refused.
uint64_t first_byte(const HttpResponse& response, const FilePart& asked, const std::string& what);

// Refuses a listing that no folder can hold: a path twice, or a file that is another's folder.
void require_distinct_paths(const std::vector<RepoFile>& files, const std::string& what);

}  // namespace graft::hub

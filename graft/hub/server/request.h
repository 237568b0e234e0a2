// A request as it came, and taken apart.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft::hub::server {

struct Request {
  std::string method;                          // GET, HEAD or POST
  std::string target;                          // as sent: path and query
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  const std::string& header(const std::string& lower_case_name) const;
};

// A request's target, taken apart before anything is decoded: `%2F` does not separate.
struct Target {
  std::vector<std::string> segments;  // decoded
  std::string path;                   // segments joined with `/`, with a leading one
  std::vector<std::pair<std::string, std::string>> query;

  const std::string& param(std::string_view name) const;
  static Target parse(std::string_view target);
};

// `a=1&b=x%20y` as pairs.
std::vector<std::pair<std::string, std::string>> parse_form(std::string_view text);

// The parts from `first` on, joined with `/`.
std::string joined(const std::vector<std::string>& segments, size_t first);

// A whole text of decimal digits; nothing for any other text.
std::optional<uint64_t> parse_number(std::string_view text);

// A part of a file of `size_bytes`.
struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};

enum class RangeKind { kWhole, kPart, kUnsatisfiable };

// Reads a Range header: `bytes=a-b`, `bytes=a-` or `bytes=-n`. Anything else, several ranges
// included, means the whole file, as RFC 9110 allows.
RangeKind parse_range(std::string_view header, uint64_t size_bytes, ByteRange& range);

}  // namespace graft::hub::server

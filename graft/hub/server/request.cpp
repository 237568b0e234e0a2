#include "graft/hub/server/request.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace graft::hub::server {

namespace {

const std::string kEmpty;

std::string percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr ==
            text.data() + i + 3) {
      out += static_cast<char>(value);
      i += 2;
    } else {
      out += text[i] == '+' && plus_is_space ? ' ' : text[i];
    }
  }
  return out;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

std::string joined(const std::vector<std::string>& segments, size_t first) {
  return first >= segments.size()
             ? std::string()
             : fmt::format("{}", fmt::join(segments.begin() + static_cast<ptrdiff_t>(first),
                                           segments.end(), "/"));
}

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  return !text.empty() && parsed.ec == std::errc() && parsed.ptr == end ? std::optional(value)
                                                                        : std::nullopt;
}

RangeKind parse_range(std::string_view header, uint64_t size_bytes, ByteRange& range) {
  constexpr std::string_view kUnit = "bytes=";
  const auto dash = header.find('-');
  if (!header.starts_with(kUnit) || dash == std::string_view::npos ||
      header.find(',') != std::string_view::npos) {
    return RangeKind::kWhole;
  }
  const auto first_text = header.substr(kUnit.size(), dash - kUnit.size());
  const auto first = parse_number(first_text);
  const auto last = parse_number(header.substr(dash + 1));
  if (!first && !(first_text.empty() && last)) {
    return RangeKind::kWhole;
  }
  if (!first) {  // the last `n` bytes
    const auto count = std::min(*last, size_bytes);
    range = {size_bytes - count, count};
    return count == 0 ? RangeKind::kUnsatisfiable : RangeKind::kPart;
  }
  if (*first >= size_bytes || (last && *last < *first)) {
    return RangeKind::kUnsatisfiable;
  }
  range = {*first, std::min(last.value_or(size_bytes - 1), size_bytes - 1) - *first + 1};
  return RangeKind::kPart;
}

const std::string& Request::header(const std::string& lower_case_name) const {
  const auto found = headers.find(lower_case_name);
  return found == headers.end() ? kEmpty : found->second;
}

const std::string& Target::param(std::string_view name) const {
  for (const auto& [key, value] : query) {
    if (key == name) {
      return value;
    }
  }
  return kEmpty;
}

std::vector<std::pair<std::string, std::string>> parse_form(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const auto part : split(text, '&')) {
    const auto equals = std::min(part.find('='), part.size());
    if (!part.empty()) {
      pairs.emplace_back(percent_decode(part.substr(0, equals), true),
                         percent_decode(equals < part.size() ? part.substr(equals + 1) : "", true));
    }
  }
  return pairs;
}

Target Target::parse(std::string_view text) {
  Target target;
  const auto mark = std::min(text.find('?'), text.size());
  for (const auto segment : split(text.substr(0, mark), '/')) {
    if (!segment.empty()) {
      target.segments.push_back(percent_decode(segment, false));
    }
  }
  target.path = fmt::format("/{}", joined(target.segments, 0));
  target.query = parse_form(mark < text.size() ? text.substr(mark + 1) : "");
  return target;
}

}  // namespace graft::hub::server

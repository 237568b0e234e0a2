#include "graft/hub/redirect.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/hub/cache.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxBytes = 4096;

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  return first == std::string_view::npos
             ? std::string_view()
             : text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

[[noreturn]] void fail(const char* reason, const std::string& file, size_t line,
                       const std::string& text) {
  throw FormatError("hub.redirect", reason, fmt::format("`{}` line {}: {}", file, line, text));
}

struct Entry {
  std::string value;
  size_t line = 0;
};

// `key = "value"` with nothing but a comment behind it.
std::map<std::string, Entry> read_entries(std::string_view text, const std::string& file) {
  std::map<std::string, Entry> entries;
  size_t line = 0;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    const auto row = trimmed(text.substr(start, end - start));
    start = end + 1;
    ++line;
    if (row.empty() || row[0] == '#') {
      continue;
    }
    const auto equals = row.find('=');
    const auto key = trimmed(row.substr(0, std::min(equals, row.size())));
    const auto rest =
        equals == std::string_view::npos ? std::string_view() : trimmed(row.substr(equals + 1));
    const auto close = rest.size() > 1 ? rest.find('"', 1) : std::string_view::npos;
    const auto after =
        close == std::string_view::npos ? std::string_view() : trimmed(rest.substr(close + 1));
    if (key.empty() || rest.empty() || rest[0] != '"' || close == std::string_view::npos ||
        rest.substr(0, close).find('\\') != std::string_view::npos ||
        (!after.empty() && after[0] != '#') ||
        !entries.emplace(key, Entry{std::string(rest.substr(1, close - 1)), line}).second) {
      fail("grammar", file, line,
           fmt::format("expected `key = \"text\"`, each key once, got `{}`", row.substr(0, 200)));
    }
  }
  return entries;
}

}  // namespace

Redirect parse_redirect(std::string_view text, const std::string& file) {
  if (text.size() > kMaxBytes) {
    fail("grammar", file, 1,
         fmt::format("expected at most {} bytes, got {}", kMaxBytes, text.size()));
  }
  auto entries = read_entries(text, file);
  const Entry kind = entries["kind"];
  if (kind.value != "redirect") {
    fail("kind", file, std::max<size_t>(kind.line, 1),
         fmt::format("`kind`: expected `redirect`, got `{}`", kind.value));
  }
  const Entry destination = entries["destination"];
  if (!is_repo_id(destination.value) || destination.value.find('/') == std::string::npos) {
    fail("destination", file, std::max<size_t>(destination.line, 1),
         fmt::format("`destination`: expected `org/name`, got `{}`", destination.value));
  }
  const Entry revision = entries["revision"];
  if (revision.value.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                       "0123456789._-/") != std::string::npos ||
      revision.value.find("..") != std::string::npos) {
    fail("revision", file, revision.line,
         fmt::format("`revision`: expected a branch, tag or commit, got `{}`", revision.value));
  }
  return {destination.value, revision.value};
}

std::optional<Redirect> read_redirect(const std::filesystem::path& snapshot) {
  const auto file = snapshot / kStatusFile;
  const auto text = read_regular_file(file, kMaxBytes + 1);
  return text ? std::optional(parse_redirect(*text, file.string())) : std::nullopt;
}

}  // namespace graft::hub

// `kernel-status.toml` at the root of a kernel repository that has moved to another name. Python's
// `kernels` 0.13 to 0.16 followed it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace graft::hub {

inline constexpr char kStatusFile[] = "kernel-status.toml";

struct Redirect {
  std::string destination;  // `org/name`
  std::string revision;     // empty: that which was asked for
};

// Reads `kind = "redirect"`, `destination`, `revision`: one `key = "text"` a line, comments, nothing
// else.
// Throws   FormatError `hub.redirect.{grammar,kind,destination,revision}` with the line.
Redirect parse_redirect(std::string_view text, const std::string& file);

// The redirect in a snapshot's folder; nothing where it has none. Throws as parse_redirect.
std::optional<Redirect> read_redirect(const std::filesystem::path& snapshot);

}  // namespace graft::hub

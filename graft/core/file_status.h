// What lies under a path, links followed. std::filesystem's own questions answer a loop of links or
// a locked folder with an exception that no caller of graft expects.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

namespace graft {

// True for a regular file, a folder, or anything at all; false where nothing of that name lies.
// Throws   NotFound `core.file.status` when the file system will not say: a loop of links, a folder
//          that may not be read, a name that is too long.
bool is_file(const std::filesystem::path& path);
bool is_folder(const std::filesystem::path& path);
bool is_there(const std::filesystem::path& path);

// The first `max_bytes` of a regular file, or of what a link leads to. Nothing for what is not there, may not be read or
// is of another kind: a pipe would be waited for, and a device has no end.
std::optional<std::string> read_regular_file(const std::filesystem::path& path, size_t max_bytes);

}  // namespace graft

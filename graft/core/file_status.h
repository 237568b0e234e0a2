// What lies under a path, links followed. std::filesystem's own questions answer a loop of links or
// a locked folder with an exception that no caller of graft expects.
#pragma once

#include <filesystem>

namespace graft {

// True for a regular file, a folder, or anything at all; false where nothing of that name lies.
// Throws   NotFound `core.file.status` when the file system will not say: a loop of links, a folder
//          that may not be read, a name that is too long.
bool is_file(const std::filesystem::path& path);
bool is_folder(const std::filesystem::path& path);
bool is_there(const std::filesystem::path& path);

}  // namespace graft

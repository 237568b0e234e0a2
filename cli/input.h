// Text that comes into the program from files and from stdin.
#pragma once

#include <string>
#include <string_view>

namespace graft::cli {

// A whole file, or all of stdin for `-`. `option` is what the user typed, for messages.
// Throws NotFound when the file cannot be read, InvalidArgument for a folder and for a stdin that
// is a terminal.
std::string read_text(const std::string& path, std::string_view option);

}  // namespace graft::cli

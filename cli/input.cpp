#include "cli/input.h"

#include <fstream>
#include <iostream>
#include <iterator>

#include <fmt/format.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"

namespace graft::cli {

std::string read_text(const std::string& path, std::string_view option) {
  if (path == "-") {
    if (isatty(STDIN_FILENO) != 0) {
      throw InvalidArgument("cli", "stdin",
                            fmt::format("{}: expected text on stdin, got a terminal", option),
                            "pipe a file into the program, or give the text as an argument");
    }
    return {std::istreambuf_iterator<char>(std::cin), {}};
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    throw NotFound("cli", "file",
                   fmt::format("{}: expected a readable file, got `{}`", option, path));
  }
  if (is_folder(path)) {
    throw InvalidArgument("cli", "file",
                          fmt::format("{}: expected a file, got the folder `{}`", option, path));
  }
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace graft::cli

// Landlock: which files the process may open. Linux 5.13 and later.
// Source   https://docs.kernel.org/userspace-api/landlock.html
#pragma once

#include <string>
#include <vector>

namespace graft::canary {

struct FileRules {
  std::vector<std::string> readable;  // files, or folders with all below
  std::vector<std::string> writable;  // folders: everything below may be made, changed, removed
  std::vector<std::string> devices;   // files that may be read, written, truncated, asked by ioctl
};

// Allows the calling thread (and every thread and process that it starts) what the rules say, and
// nothing else of the file system; also no TCP, no signals to others and no abstract Unix sockets, as
// far as the kernel knows how. Paths that do not exist are left out.
// Returns an empty text, or why it could not be done.
std::string restrict_files(const FileRules& rules);

}  // namespace graft::canary

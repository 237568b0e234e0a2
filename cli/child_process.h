// Programs that a command runs.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::cli {

// This process's environment, `NAME=value` each, without the variables whose name `drops` says.
std::vector<std::string> environment_without(
    const std::function<bool(std::string_view name)>& drops);

// Runs words[0], a path, with the others as its arguments: no shell in between. What it writes to stdout
// is handed over in pieces as it comes; its stderr is ours.
//
// Returns its status, as waitpid() has it. Throws std::system_error where it cannot be started, and what
// `take` throws, the program having ended.
int run_child(const std::vector<std::string>& words, const std::vector<std::string>& environment,
              const std::function<void(std::string_view piece)>& take);

}  // namespace graft::cli

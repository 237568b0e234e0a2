#include "cli/child_process.h"

#include <array>
#include <cerrno>
#include <exception>
#include <system_error>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

namespace graft::cli {

namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const auto& text : texts) {
    pointers.push_back(const_cast<char*>(text.c_str()));
  }
  pointers.push_back(nullptr);
  return pointers;
}

// Until the other end is closed.
void read_all(int end, const std::function<void(std::string_view piece)>& take) {
  std::array<char, 4096> piece{};
  for (ssize_t count = 0; (count = read(end, piece.data(), piece.size())) != 0;) {
    if (count > 0) {
      take({piece.data(), static_cast<size_t>(count)});
    } else if (errno != EINTR) {
      return;
    }
  }
}

}  // namespace

std::vector<std::string> environment_without(
    const std::function<bool(std::string_view name)>& drops) {
  std::vector<std::string> kept;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    if (!drops(text.substr(0, text.find('=')))) {
      kept.emplace_back(text);
    }
  }
  return kept;
}

int run_child(const std::vector<std::string>& words, const std::vector<std::string>& environment,
              const std::function<void(std::string_view piece)>& take) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "a pipe");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t child = 0;
  const int failure = posix_spawn(&child, words[0].c_str(), &actions, nullptr,
                                  pointers_to(words).data(), pointers_to(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (failure != 0) {
    close(ends[0]);
    throw std::system_error(failure, std::generic_category(), words[0]);
  }
  std::exception_ptr thrown;
  try {
    read_all(ends[0], take);
  } catch (...) {
    thrown = std::current_exception();
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (thrown) {
    std::rethrow_exception(thrown);
  }
  return status;
}

}  // namespace graft::cli

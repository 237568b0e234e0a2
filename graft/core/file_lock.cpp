#include "graft/core/file_lock.h"

#include <cerrno>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

namespace graft {

namespace {

constexpr std::chrono::milliseconds kPollInterval{50};
constexpr std::chrono::seconds kNoticeInterval{10};

}  // namespace

FileLock::FileLock(const std::filesystem::path& file, std::chrono::seconds timeout,
                   const std::function<void()>& on_wait) {
  std::error_code status;
  std::filesystem::create_directories(file.parent_path(), status);
  descriptor_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0664);
  if (descriptor_ < 0) {
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  auto next_notice = start + kNoticeInterval;
  while (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const auto now = std::chrono::steady_clock::now();
    if ((errno != EWOULDBLOCK && errno != EINTR) || now - start > timeout) {
      return;
    }
    if (on_wait && now > next_notice) {
      on_wait();
      next_notice = now + kNoticeInterval;
    }
    std::this_thread::sleep_for(kPollInterval);
  }
  held_ = true;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

}  // namespace graft

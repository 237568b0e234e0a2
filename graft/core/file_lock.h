// An advisory lock on a file, held while the object lives. It saves work between processes;
// correctness never depends on it (locks are no-ops on some file systems).
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>

namespace graft {

class FileLock {
 public:
  // Creates the file when missing and waits for the lock up to `timeout`; `on_wait` is called about
  // every ten seconds of waiting. Where the file cannot be created or locked, the object holds
  // nothing: held() says so. Blocks up to `timeout`; throws nothing.
  FileLock(const std::filesystem::path& file, std::chrono::seconds timeout,
           const std::function<void()>& on_wait = {});
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  bool held() const { return held_; }

 private:
  int descriptor_ = -1;
  bool held_ = false;
};

}  // namespace graft

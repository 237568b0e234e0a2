#include "graft/hub/leftovers.h"

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <fstream>
#include <string>

#include <fmt/format.h>
#include <unistd.h>

#include "graft/hub/content_hash.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kAbandonedAfter{1};
constexpr int kNobody = 0;  // in a process's place: the file waits for its next writer

// Where process numbers mean the same processes: one boot of one machine, one container on it.
const std::string& machine() {
  static const std::string kMachine = [] {
    std::ifstream boot("/proc/sys/kernel/random/boot_id");
    std::string text;
    std::getline(boot, text);
    std::error_code status;
    text += fs::read_symlink("/proc/self/ns/pid", status).string();
    return sha256_of(text).substr(0, 8);
  }();
  return kMachine;
}

// `<machine>-<process>-<number>`, one dot before it and what kind of file it is behind.
std::string mark(int process) {
  static std::atomic<uint32_t> counter{0};
  return fmt::format("{}-{}-{:x}{:x}", machine(), process, getpid(), counter++);
}

struct Mark {
  std::string machine;
  int process = 0;
};

std::optional<Mark> mark_of(const fs::path& file) {
  const std::string name = file.stem().string();
  const std::string text = name.substr(name.rfind('.') + 1);
  const auto first = text.find('-'), second = text.find('-', first + 1);
  if (first == std::string::npos || second == std::string::npos) {
    return std::nullopt;
  }
  Mark found{text.substr(0, first), 0};
  const auto [end, status] =
      std::from_chars(text.data() + first + 1, text.data() + second, found.process);
  const bool is_number = status == std::errc() && end == text.data() + second;
  return is_number && found.process >= 0 ? std::optional(found) : std::nullopt;
}

bool is_unfinished(const fs::path& file) {
  const auto kind = file.extension();
  return kind == kTemporary || kind == kIncomplete || kind == kBlocks;
}

fs::path with_extension(fs::path file, const char* extension) {
  return file.replace_extension(extension);
}

// Takes the bytes first: of several who try, one gets them. The notes follow; without them the bytes
// are fetched again.
bool take_over(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    return false;
  }
  std::rename(with_extension(from, kBlocks).c_str(), with_extension(to, kBlocks).c_str());
  return true;
}

}  // namespace

fs::path temporary_beside(const fs::path& path) {
  return path.parent_path() / fmt::format(".{}{}", mark(getpid()), kTemporary);
}

bool is_abandoned(const fs::path& file) {
  const auto found = is_unfinished(file) ? mark_of(file) : std::nullopt;
  if (!found) {
    return false;
  }
  if (found->process == kNobody) {
    return true;
  }
  if (found->machine == machine() && kill(found->process, 0) != 0 && errno == ESRCH) {
    return true;
  }
  return is_old(file);
}

bool is_old(const fs::path& file) {
  std::error_code status;
  const auto written = fs::last_write_time(file, status);
  return !status && fs::file_time_type::clock::now() - written > kAbandonedAfter;
}

fs::path take_incomplete(const fs::path& blob) {
  const fs::path own = blob.string() + "." + mark(getpid()) + kIncomplete;
  const std::string beginning = blob.filename().string() + ".";
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(blob.parent_path(), status)) {
    const fs::path& file = entry.path();
    if (file.extension() == kIncomplete && file.filename().string().starts_with(beginning) &&
        is_abandoned(file) && take_over(file, own)) {
      return own;
    }
  }
  return own;
}

void release_incomplete(const fs::path& file) {
  const fs::path blob = file.stem().stem();
  take_over(file,
            file.parent_path() / fmt::format("{}.{}{}", blob.string(), mark(kNobody), kIncomplete));
}

void sweep_leftovers(const fs::path& folder) {
  std::error_code status;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator entry(folder, options, status), end;
       entry != end && !status; entry.increment(status)) {
    const fs::path file = entry->path();
    std::error_code ignored;
    const bool is_stray =
        file.extension() == kBlocks && !fs::exists(with_extension(file, kIncomplete), ignored);
    if ((file.extension() == kTemporary || is_stray) && is_abandoned(file)) {
      fs::remove(file, ignored);
    }
  }
}

}  // namespace graft::hub

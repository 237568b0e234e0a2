#include "graft/kernel/canary_process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "graft/core/env.h"
#include "graft/core/temporary_folder.h"
#include "graft/kernel/canary_report.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kPollMilliseconds = 20;
// Longer between two looks at the helper: the machine stood still, paused or asleep, which is no fault of a package.
constexpr std::chrono::seconds kStandstill{1};
constexpr int kFirstFreeDescriptor = 128;  // above those that the helper finds
constexpr std::string_view kCannotStart = "the helper process cannot be started: ";

class Descriptor {
 public:
  // Takes over a descriptor, and moves it out of the way of those that the helper gets.
  explicit Descriptor(int value) : value_(fcntl(value, F_DUPFD_CLOEXEC, kFirstFreeDescriptor)) {
    close(value);
  }
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return value_; }
  void reset() {
    if (value_ >= 0) {
      close(value_);
    }
    value_ = -1;
  }

 private:
  int value_;
};

struct Pipe {
  Descriptor read, write;
  static Pipe make() {
    std::array<int, 2> ends{-1, -1};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw std::system_error(errno, std::generic_category(), "pipe");
    }
    return {Descriptor(ends[0]), Descriptor(ends[1])};
  }
};

Descriptor memory_file(const std::string& content) {
  const int made = memfd_create("graft-canary-request", MFD_CLOEXEC);
  if (made < 0 ||
      write(made, content.data(), content.size()) != static_cast<ssize_t>(content.size()) ||
      lseek(made, 0, SEEK_SET) != 0) {
    throw std::system_error(errno, std::generic_category(), "request");
  }
  return Descriptor(made);
}

// A folder of this run alone: `scratch` in it may be written to, the rest must stay out of reach.
class RunFolder {
 public:
  RunFolder() : folder_("graft-canary", &fail) {
    if (!fs::create_directory(path() / "scratch")) {
      fail(path().string());
    }
    const int decoy = open((path() / "decoy").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    close(decoy);
  }
  const fs::path& path() const { return folder_.path(); }

  uint64_t scratch_bytes() const {
    uint64_t total = 0;
    std::error_code status;
    for (fs::recursive_directory_iterator it(path() / "scratch", status), end; it != end && !status;
         it.increment(status)) {
      const auto size = it->is_regular_file(status) ? it->file_size(status) : 0;
      total += 4096 + (status ? 0 : size);
      status.clear();
    }
    return total;
  }

 private:
  [[noreturn]] static void fail(const std::string& path) {
    throw std::system_error(errno, std::generic_category(), path);
  }

  TemporaryFolder folder_;
};

// What the helper may know of our environment: nothing that is secret.
std::vector<std::string> helper_environment(const fs::path& scratch) {
  std::vector<std::string> variables = {
      "GRAFT_CANARY=off",           "GRAFT_LOG=off",
      "OMP_NUM_THREADS=2",          "OMP_WAIT_POLICY=PASSIVE",
      "MALLOC_ARENA_MAX=2",         "HOME=" + scratch.string(),
      "TMPDIR=" + scratch.string(), "CUDA_CACHE_PATH=" + scratch.string()};
  for (const char* name : {"LD_LIBRARY_PATH", "GRAFT_CPU_ISA", "CUDA_VISIBLE_DEVICES"}) {
    if (const auto value = env::get(name)) {
      variables.push_back(fmt::format("{}={}", name, *value));
    }
  }
  return variables;
}

// A started helper; ended and waited for at the latest by the destructor.
class Helper {
 public:
  Helper(const fs::path& program, const RunFolder& folder, const std::vector<int>& descriptors) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (size_t i = 0; i < descriptors.size(); ++i) {
      posix_spawn_file_actions_adddup2(&actions, descriptors[i], static_cast<int>(i));
    }
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    auto variables = helper_environment(folder.path() / "scratch");
    std::vector<char*> environment;
    for (auto& variable : variables) {
      environment.push_back(variable.data());
    }
    environment.push_back(nullptr);
    std::string name = program.string();
    char* arguments[] = {name.data(), nullptr};
    failure_ =
        posix_spawn(&pid_, name.c_str(), &actions, &attributes, arguments, environment.data());
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  ~Helper() { end(); }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  int failure() const { return failure_; }
  bool running() {
    if (failure_ == 0 && !ended_) {
      wait(WNOHANG);
    }
    return failure_ == 0 && !ended_;
  }
  // The status of waitpid, or nothing when the application waits for all children itself.
  std::optional<int> status() const { return status_; }
  void end() {
    if (running()) {
      kill(pid_, SIGKILL);
      wait(0);
    }
  }

 private:
  void wait(int options) {
    int status = 0;
    pid_t result = 0;
    do {
      result = waitpid(pid_, &status, options);
    } while (result < 0 && errno == EINTR);
    if (result == pid_) {
      status_ = status;
    }
    ended_ = result != 0;  // ours, or taken by somebody else
  }

  pid_t pid_ = -1;
  int failure_ = 0;
  bool ended_ = false;
  std::optional<int> status_;
};

// Reads what is there; false at the end of the pipe. Beyond `most` bytes are counted and dropped.
bool drain(int descriptor, std::string& text, size_t most, uint64_t& num_bytes) {
  std::array<char, 16384> buffer{};
  const ssize_t size = read(descriptor, buffer.data(), buffer.size());
  if (size <= 0) {
    return size < 0 && (errno == EINTR || errno == EAGAIN);
  }
  num_bytes += static_cast<uint64_t>(size);
  const size_t room = most - std::min(most, text.size());
  text.append(buffer.data(), std::min(room, static_cast<size_t>(size)));
  return true;
}

// Everything that was seen of one run.
struct Watched {
  std::string report;
  std::string output;
  std::optional<CanaryStatus> ended_for;
  std::string detail;
};

class Watch {
 public:
  Watch(Helper& helper, const RunFolder& folder, const CanaryLimits& limits, int report, int output)
      : helper_(helper),
        folder_(folder),
        limits_(limits),
        polled_{{{report, POLLIN, 0}, {output, POLLIN, 0}}} {}

  Watched run() {
    auto last = Clock::now();
    auto deadline = last + limits_.start;
    bool opening = false;
    while (!seen_.ended_for && read_some()) {
      if (!opening && seen_.report.find(kReportOpening) != std::string::npos) {
        opening = true;
        deadline = Clock::now() + limits_.run;
      }
      const auto now = Clock::now();
      if (now - last > kStandstill) {
        deadline += now - last;
      }
      last = now;
      if (now > deadline) {
        stop(CanaryStatus::kHang,
             fmt::format("not done after {:g} s", (opening ? limits_.run : limits_.start).count()));
      }
      check_sizes();
    }
    helper_.end();
    return std::move(seen_);
  }

 private:
  // False when the helper is gone and its pipes are read to their ends.
  bool read_some() {
    const bool running = helper_.running();
    const int ready = poll(polled_.data(), polled_.size(), running ? kPollMilliseconds : 0);
    for (size_t i = 0; ready > 0 && i < polled_.size(); ++i) {
      if (polled_[i].revents != 0) {
        const bool open = drain(polled_[i].fd, i == 0 ? seen_.report : seen_.output,
                                i == 0 ? kMostReportBytes : limits_.output_bytes, num_bytes_[i]);
        polled_[i].fd = open ? polled_[i].fd : -1;  // poll() passes over it
      }
    }
    return running || ready > 0;
  }

  void check_sizes() {
    if (num_bytes_[1] > limits_.output_bytes || num_bytes_[0] > kMostReportBytes) {
      stop(CanaryStatus::kOutput,
           fmt::format("wrote more than {} bytes of text", limits_.output_bytes));
    } else if (folder_.scratch_bytes() > limits_.scratch_bytes) {
      stop(CanaryStatus::kOutput,
           fmt::format("wrote more than {} bytes of files", limits_.scratch_bytes));
    }
  }

  void stop(CanaryStatus status, std::string detail) {
    seen_.ended_for = status;
    seen_.detail = std::move(detail);
  }

  Helper& helper_;
  const RunFolder& folder_;
  const CanaryLimits& limits_;
  std::array<pollfd, 2> polled_;
  std::array<uint64_t, 2> num_bytes_{};
  Watched seen_;
};

CanaryVerdict not_started(const std::string& reason) {
  return {.status = CanaryStatus::kNotIsolated, .gaps = {std::string(kCannotStart) + reason}};
}

CanaryVerdict run_helper(const std::string& repository, const Resolution& resolution,
                         const SealedLibraries& libraries, bool require_isolation,
                         const CanaryLimits& limits) {
  const RunFolder folder;
  std::vector<fs::path> files;
  std::vector<Descriptor> sealed;
  for (const auto& library : libraries) {
    files.push_back(library->file());
    sealed.emplace_back(dup(library->descriptor()));
  }
  const Descriptor request = memory_file(
      canary_request({repository, resolution, files, folder.path(), require_isolation, limits}));
  Pipe report = Pipe::make(), output = Pipe::make();
  std::vector<int> descriptors = {request.get(), output.write.get(), output.write.get(),
                                  report.write.get()};
  for (const auto& descriptor : sealed) {
    descriptors.push_back(descriptor.get());
  }
  const fs::path program = canary_program();
  Helper helper(program, folder, descriptors);
  if (helper.failure() != 0) {
    return not_started(fmt::format("`{}`: {}", program.string(), std::strerror(helper.failure())));
  }
  report.write.reset();
  output.write.reset();
  const Watched seen = Watch(helper, folder, limits, report.read.get(), output.read.get()).run();
  CanaryVerdict verdict = judge_report(seen.report, helper.status(), seen.output);
  if (seen.ended_for && verdict.status != CanaryStatus::kNotIsolated) {
    verdict = {.status = *seen.ended_for,
               .detail = fmt::format("{} {}", seen.detail, last_step(seen.report)),
               .gaps = verdict.gaps};
  }
  return verdict;
}

}  // namespace

fs::path canary_program() {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&canary_program), &info);
  return fs::weakly_canonical(fs::path(info.dli_fname)).parent_path() / "graft_helpers" /
         "graft-canary";
}

CanaryVerdict run_canary(const std::string& repository, const Resolution& resolution,
                         const SealedLibraries& libraries, bool require_isolation,
                         const CanaryLimits& limits) {
  const auto start = Clock::now();
  CanaryVerdict verdict;
  try {
    verdict = run_helper(repository, resolution, libraries, require_isolation, limits);
  } catch (const std::system_error& error) {
    verdict = not_started(error.what());
  }
  verdict.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return verdict;
}

}  // namespace graft::kernel

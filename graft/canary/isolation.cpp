#include "graft/canary/isolation.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <set>

#include <fcntl.h>
#include <fmt/format.h>
#include <link.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "graft/canary/landlock.h"
#include "graft/canary/report.h"
#include "graft/canary/system_calls.h"

namespace graft::canary {

namespace {

namespace fs = std::filesystem;

constexpr rlim_t kMostOpenFiles = 1024;
constexpr rlim_t kMostProcessorSecondsPerSecond = 4;

bool is_cuda(const kernel::CanaryRequest& request) {
  return request.resolution.metadata.backend == "cuda";
}

// CUDA reserves address space by the terabyte, and so does a sanitizer.
bool limits_memory(const kernel::CanaryRequest& request) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return false;
#else
  return !is_cuda(request);
#endif
}

uint64_t address_space_bytes() {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string limit(decltype(RLIMIT_AS) resource, rlim_t value, const char* name) {
  rlimit now{};
  getrlimit(resource, &now);
  value = std::min(value, now.rlim_max);
  const rlimit limit{value, value};
  return setrlimit(resource, &limit) == 0
             ? ""
             : fmt::format("limits: {}: {}", name, std::strerror(errno));
}

void limit_resources(const kernel::CanaryRequest& request, std::vector<std::string>& gaps) {
  const auto run_seconds = static_cast<rlim_t>(request.limits.run.count()) + 1;
  std::vector<std::string> results = {
      limit(RLIMIT_CORE, 0, "core files"),
      limit(RLIMIT_FSIZE, request.limits.scratch_bytes, "file size"),
      limit(RLIMIT_NOFILE, kMostOpenFiles, "open files"),
      limit(RLIMIT_CPU, run_seconds * kMostProcessorSecondsPerSecond, "processor time")};
  if (limits_memory(request)) {
    results.push_back(
        limit(RLIMIT_AS, address_space_bytes() + request.limits.memory_bytes, "memory"));
  }
  for (auto& result : results) {
    if (!result.empty()) {
      gaps.push_back(std::move(result));
    }
  }
  std::set_new_handler(
      [] { report_and_end("out_of_memory", "asked for more memory than it may have"); });
}

// Rights of root that an ordinary user does not have, but for reading files.
std::string drop_rights() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[2]{};
  if (syscall(SYS_capget, &header, sets) != 0) {
    return fmt::format("rights: {}", std::strerror(errno));
  }
  for (auto& set : sets) {
    const uint32_t kept = &set == sets ? 1U << CAP_DAC_READ_SEARCH : 0U;
    set.effective &= kept;
    set.permitted &= kept;
    set.inheritable = 0;
  }
  if (syscall(SYS_capset, &header, sets) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return fmt::format("rights: {}", std::strerror(errno));
  }
  return "";
}

// Folders of the libraries that are here already: what they open later lies beside them.
std::set<std::string> library_folders() {
  std::set<std::string> folders;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        const fs::path library = info->dlpi_name;
        if (library.is_absolute()) {
          std::error_code status;
          auto* all = static_cast<std::set<std::string>*>(found);
          all->insert(library.parent_path().string());
          all->insert(fs::weakly_canonical(library, status).parent_path().string());
        }
        return 0;
      },
      &folders);
  return folders;
}

std::vector<std::string> cuda_devices() {
  std::vector<std::string> devices = {"/proc",
                                      "/dev/shm"};  // the driver names its threads in /proc
  std::error_code status;
  for (const auto& entry : fs::directory_iterator("/dev", status)) {
    if (entry.path().filename().string().starts_with("nvidia")) {
      devices.push_back(entry.path().string());
    }
  }
  return devices;
}

FileRules file_rules(const kernel::CanaryRequest& request) {
  FileRules rules;
  rules.readable = {"/usr", "/lib", "/lib64", "/proc", "/sys", "/etc/ld.so.cache"};
  for (const auto& folder : library_folders()) {
    rules.readable.push_back(folder);
  }
  const fs::path& package = request.resolution.folder;
  rules.readable.push_back(package.string());
  std::error_code status;
  for (const auto& entry : fs::recursive_directory_iterator(package, status)) {
    if (entry.is_symlink(status)) {  // in the Hub's cache, files lie elsewhere
      rules.readable.push_back(fs::weakly_canonical(entry.path(), status).string());
    }
  }
  rules.writable = {(request.folder / "scratch").string()};
  rules.devices = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
  if (is_cuda(request)) {
    for (auto& device : cuda_devices()) {
      rules.devices.push_back(std::move(device));
    }
  }
  return rules;
}

size_t num_threads() {
  std::error_code status;
  const fs::directory_iterator threads("/proc/self/task", status);
  return static_cast<size_t>(std::distance(begin(threads), end(threads)));
}

// One forbidden thing of each kind. Every line that is added names a wall that does not stand.
class SelfCheck {
 public:
  explicit SelfCheck(const kernel::CanaryRequest& request) : request_(request) {}

  std::vector<std::string> run() {
    environment();
    descriptors();
    memory();
    files();
    other_processes();
    return std::move(holes_);
  }

 private:
  void hole(const std::string& text) { holes_.push_back("self-check: " + text); }

  void environment() {
    for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
      if (std::getenv(name) != nullptr) {
        hole(fmt::format("the variable {} is there", name));
      }
    }
  }

  void descriptors() {
    const int first = kernel::kCanaryLibrary + static_cast<int>(request_.libraries.size());
    for (int i = first; i < static_cast<int>(kMostOpenFiles); ++i) {
      if (fcntl(i, F_GETFD) >= 0) {
        hole(fmt::format("descriptor {} is open", i));
        return;
      }
    }
  }

  void memory() {
    if (!limits_memory(request_)) {
      return;
    }
    void* much = mmap(nullptr, request_.limits.memory_bytes + (uint64_t{1} << 30),
                      PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (much != MAP_FAILED) {
      hole("memory beyond the limit was given");
    }
  }

  bool opens(const fs::path& file, int flags) {
    const int opened = open(file.c_str(), flags | O_CLOEXEC, 0600);
    if (opened >= 0) {
      close(opened);
    }
    return opened >= 0;
  }

  void files() {
    if (opens(request_.folder / "decoy", O_RDONLY)) {
      hole("a file outside can be read");
    }
    if (opens(request_.folder / "made", O_WRONLY | O_CREAT)) {
      hole("a file outside can be made");
    }
    if (opens(fmt::format("/proc/{}/environ", getppid()), O_RDONLY)) {
      hole("the parent's environment can be read");
    }
    if (!opens(request_.folder / "scratch" / "probe", O_WRONLY | O_CREAT)) {
      hole("the scratch folder cannot be written");
    }
  }

  void other_processes() {
    const int before = num_refused();
    const int made = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (made >= 0) {
      close(made);
      hole("a socket can be made");
    }
    if (kill(getppid(), 0) == 0) {
      hole("signals can be sent to the parent");
    }
    if (!is_cuda(request_) && num_refused() - before < 2) {
      hole("forbidden system calls are not caught");
    }
  }

  const kernel::CanaryRequest& request_;
  std::vector<std::string> holes_;
};

}  // namespace

std::vector<std::string> isolate(const kernel::CanaryRequest& request) {
  std::vector<std::string> gaps;
  const auto note = [&](std::string_view what, const std::string& failure) {
    if (!failure.empty()) {
      gaps.push_back(fmt::format("{}{}", what, failure));
    }
  };
  const FileRules rules = file_rules(request);  // before files are out of reach
  const bool alone = num_threads() == 1;
  limit_resources(request, gaps);
  note("", drop_rights());
  note("files: ", alone ? restrict_files(rules) : "the process has more than one thread");
  note("system calls: ", restrict_system_calls(rules.readable, is_cuda(request)));
  for (auto& hole : SelfCheck(request).run()) {
    gaps.push_back(std::move(hole));
  }
  return gaps;
}

void be_strict(const kernel::CanaryRequest& request) {
  set_strictness(is_cuda(request) ? Strictness::kRefuse : Strictness::kReport);
}

}  // namespace graft::canary

#include "graft/kernel/import_report.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

namespace graft::kernel {

namespace {

constexpr std::string_view kFiles[] = {
    "access",    "chdir",      "chmod",     "chown",     "chroot",    "creat",     "creat64",
    "faccessat", "fchmod",     "fchmodat",  "fchown",    "fchownat",  "fdopen",    "fopen",
    "fopen64",   "freopen",    "freopen64", "fstatat",   "fstatat64", "ftw",       "ftw64",
    "glob",      "glob64",     "lchown",    "link",      "linkat",    "lstat",     "lstat64",
    "mkdir",     "mkdirat",    "mkdtemp",   "mkfifo",    "mknod",     "mkstemp",   "mkstemp64",
    "mount",     "nftw",       "nftw64",    "open",      "open64",    "openat",    "openat64",
    "opendir",   "readdir",    "readdir64", "readlink",  "realpath",  "remove",    "rename",
    "renameat",  "rmdir",      "scandir",   "scandir64", "setxattr",  "shm_open",  "shm_unlink",
    "stat",      "stat64",     "statx",     "symlink",   "symlinkat", "tmpfile",   "tmpfile64",
    "truncate",  "truncate64", "unlink",    "unlinkat",  "utime",     "utimensat", "utimes"};
constexpr std::string_view kProcesses[] = {"clone",
                                           "daemon",
                                           "execl",
                                           "execle",
                                           "execlp",
                                           "execv",
                                           "execve",
                                           "execveat",
                                           "execvp",
                                           "execvpe",
                                           "fexecve",
                                           "fork",
                                           "kill",
                                           "killpg",
                                           "pclose",
                                           "pidfd_open",
                                           "popen",
                                           "posix_spawn",
                                           "posix_spawnp",
                                           "prctl",
                                           "process_vm_readv",
                                           "process_vm_writev",
                                           "ptrace",
                                           "setgid",
                                           "setuid",
                                           "setns",
                                           "sigqueue",
                                           "system",
                                           "tgkill",
                                           "unshare",
                                           "vfork",
                                           "wait",
                                           "wait4",
                                           "waitid",
                                           "waitpid",
                                           "getenv",
                                           "secure_getenv",
                                           "setenv",
                                           "putenv",
                                           "unsetenv",
                                           "environ"};
constexpr std::string_view kNetwork[] = {
    "accept",      "accept4",       "bind",          "connect",         "freeaddrinfo",
    "getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_r", "getnameinfo",
    "getpeername", "inet_addr",     "inet_aton",     "inet_ntop",       "inet_pton",
    "listen",      "recv",          "recvfrom",      "recvmsg",         "res_query",
    "res_search",  "send",          "sendmsg",       "sendto",          "setsockopt",
    "socket",      "socketpair"};
constexpr std::string_view kCode[] = {"dlmopen",       "dlopen",   "dlsym",
                                      "dlvsym",        "mprotect", "memfd_create",
                                      "pkey_mprotect", "syscall",  "personality"};
// Streams and std::filesystem of C++.
constexpr std::string_view kFileStreams[] = {"_ZNSt13basic_filebuf",  "_ZNSt14basic_ifstream",
                                             "_ZNSt14basic_ofstream", "_ZNSt13basic_fstream",
                                             "_ZNSt10filesystem",     "_ZNKSt10filesystem",
                                             "_ZNSt12__basic_file"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_file_stream(std::string_view name) {
  return std::any_of(std::begin(kFileStreams), std::end(kFileStreams),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

// glibc calls a checked or an old form of a function by a name of its own: `__open_2`, `__xstat64`,
// `__res_query`.
std::string_view plain_name(std::string_view name) {
  for (const std::string_view prefix : {"__lx", "__fx", "__x", "__"}) {
    if (name.starts_with(prefix)) {
      name.remove_prefix(prefix.size());
      break;
    }
  }
  for (const std::string_view suffix : {"_chk", "_2"}) {
    if (name.ends_with(suffix)) {
      name.remove_suffix(suffix.size());
    }
  }
  return name;
}

void add(const std::string& name, ImportReport& report) {
  for (const std::string_view form : {std::string_view(name), plain_name(name)}) {
    if (is_one_of(kFiles, form) || is_file_stream(form)) {
      report.files.push_back(name);
    } else if (is_one_of(kProcesses, form)) {
      report.processes.push_back(name);
    } else if (is_one_of(kNetwork, form)) {
      report.network.push_back(name);
    } else if (is_one_of(kCode, form)) {
      report.code.push_back(name);
    } else {
      continue;
    }
    return;
  }
}

}  // namespace

ImportReport sensitive_imports(const ElfFacts& facts) {
  ImportReport report;
  for (const auto& symbol : facts.undefined) {
    add(symbol.name, report);
  }
  for (const auto& name : facts.weak) {  // a weak reference is served like any other
    add(name, report);
  }
  for (auto* names : {&report.files, &report.processes, &report.network, &report.code}) {
    std::sort(names->begin(), names->end());
    names->erase(std::unique(names->begin(), names->end()), names->end());
  }
  return report;
}

}  // namespace graft::kernel

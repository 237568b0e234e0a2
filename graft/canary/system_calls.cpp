#include "graft/canary/system_calls.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string_view>

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "graft/canary/report.h"

// A system call whose return address the filter knows: the handler asks the kernel for a file
// through it after looking at the call. Whoever jumps here himself gains nothing that Landlock does
// not allow; forbidden calls are caught here as anywhere.
extern "C" long graft_canary_call(long number, long a, long b, long c, long d, long e);
extern "C" const char graft_canary_call_end;
asm(R"(
  .text
  .globl graft_canary_call
  .hidden graft_canary_call
  .globl graft_canary_call_end
  .hidden graft_canary_call_end
  .type graft_canary_call, @function
graft_canary_call:
  mov %rdi, %rax
  mov %rsi, %rdi
  mov %rdx, %rsi
  mov %rcx, %rdx
  mov %r8, %r10
  mov %r9, %r8
  syscall
graft_canary_call_end:
  ret
  .size graft_canary_call, .-graft_canary_call
)");

namespace graft::canary {

namespace {

// Numbers that the C library's header may not know yet.
constexpr uint32_t kProcessMadvise = 440, kMountSetattr = 442, kFchmodat2 = 452;

struct Named {
  uint32_t number;
  const char* name;
};

#define GRAFT_CALL(name) \
  Named { SYS_##name, #name }

// Other processes, the network, rights, the machine; and what Landlock does not see: owners, modes,
// times and attributes of files.
constexpr Named kForbidden[] = {GRAFT_CALL(execve),
                                GRAFT_CALL(execveat),
                                GRAFT_CALL(fork),
                                GRAFT_CALL(vfork),
                                GRAFT_CALL(socket),
                                GRAFT_CALL(socketpair),
                                GRAFT_CALL(connect),
                                GRAFT_CALL(bind),
                                GRAFT_CALL(listen),
                                GRAFT_CALL(accept),
                                GRAFT_CALL(accept4),
                                GRAFT_CALL(ptrace),
                                GRAFT_CALL(process_vm_readv),
                                GRAFT_CALL(process_vm_writev),
                                GRAFT_CALL(kcmp),
                                GRAFT_CALL(pidfd_open),
                                GRAFT_CALL(pidfd_getfd),
                                GRAFT_CALL(pidfd_send_signal),
                                GRAFT_CALL(tkill),
                                GRAFT_CALL(mount),
                                GRAFT_CALL(umount2),
                                GRAFT_CALL(pivot_root),
                                GRAFT_CALL(chroot),
                                GRAFT_CALL(setns),
                                GRAFT_CALL(unshare),
                                GRAFT_CALL(fsopen),
                                GRAFT_CALL(fsmount),
                                GRAFT_CALL(move_mount),
                                GRAFT_CALL(open_tree),
                                GRAFT_CALL(bpf),
                                GRAFT_CALL(perf_event_open),
                                GRAFT_CALL(keyctl),
                                GRAFT_CALL(add_key),
                                GRAFT_CALL(request_key),
                                GRAFT_CALL(io_uring_setup),
                                GRAFT_CALL(io_uring_enter),
                                GRAFT_CALL(io_uring_register),
                                GRAFT_CALL(userfaultfd),
                                GRAFT_CALL(kexec_load),
                                GRAFT_CALL(kexec_file_load),
                                GRAFT_CALL(init_module),
                                GRAFT_CALL(finit_module),
                                GRAFT_CALL(delete_module),
                                GRAFT_CALL(reboot),
                                GRAFT_CALL(swapon),
                                GRAFT_CALL(swapoff),
                                GRAFT_CALL(open_by_handle_at),
                                GRAFT_CALL(name_to_handle_at),
                                GRAFT_CALL(shmget),
                                GRAFT_CALL(shmat),
                                GRAFT_CALL(msgget),
                                GRAFT_CALL(semget),
                                GRAFT_CALL(mq_open),
                                GRAFT_CALL(setuid),
                                GRAFT_CALL(setgid),
                                GRAFT_CALL(setreuid),
                                GRAFT_CALL(setregid),
                                GRAFT_CALL(setresuid),
                                GRAFT_CALL(setresgid),
                                GRAFT_CALL(setgroups),
                                GRAFT_CALL(capset),
                                GRAFT_CALL(personality),
                                GRAFT_CALL(settimeofday),
                                GRAFT_CALL(clock_settime),
                                GRAFT_CALL(acct),
                                GRAFT_CALL(quotactl),
                                GRAFT_CALL(iopl),
                                GRAFT_CALL(ioperm),
                                GRAFT_CALL(chmod),
                                GRAFT_CALL(fchmod),
                                GRAFT_CALL(fchmodat),
                                GRAFT_CALL(chown),
                                GRAFT_CALL(lchown),
                                GRAFT_CALL(fchown),
                                GRAFT_CALL(fchownat),
                                GRAFT_CALL(utime),
                                GRAFT_CALL(utimes),
                                GRAFT_CALL(utimensat),
                                GRAFT_CALL(futimesat),
                                GRAFT_CALL(setxattr),
                                GRAFT_CALL(lsetxattr),
                                GRAFT_CALL(fsetxattr),
                                GRAFT_CALL(removexattr),
                                GRAFT_CALL(lremovexattr),
                                GRAFT_CALL(fremovexattr),
                                {kProcessMadvise, "process_madvise"},
                                {kMountSetattr, "mount_setattr"},
                                {kFchmodat2, "fchmodat2"}};

// Landlock decides; the handler only names what was refused. Where the path stands: the argument.
struct Watched {
  uint32_t number;
  const char* name;
  int path;
};
constexpr Watched kWatched[] = {
    {SYS_open, "open", 0},         {SYS_openat, "open", 1},     {SYS_creat, "create", 0},
    {SYS_truncate, "truncate", 0}, {SYS_unlink, "remove", 0},   {SYS_unlinkat, "remove", 1},
    {SYS_rename, "rename", 0},     {SYS_renameat, "rename", 1}, {SYS_renameat2, "rename", 1},
    {SYS_mkdir, "create", 0},      {SYS_mkdirat, "create", 1},  {SYS_rmdir, "remove", 0},
    {SYS_link, "link", 1},         {SYS_linkat, "link", 3},     {SYS_symlink, "link", 1},
    {SYS_symlinkat, "link", 2},    {SYS_mknod, "create", 0},    {SYS_mknodat, "create", 1}};

// Calls whose first argument must be this very process: signals to itself are how abort() ends it.
constexpr Named kToItself[] = {GRAFT_CALL(kill), GRAFT_CALL(tgkill), GRAFT_CALL(rt_sigqueueinfo),
                               GRAFT_CALL(rt_tgsigqueueinfo)};
#undef GRAFT_CALL

std::atomic<bool> reports{false};
std::atomic<int> refused_calls{0};
// Copied before the filter stands: the handler may not allocate.
char readable_folders[16][256];
size_t num_readable_folders = 0;

const char* forbidden_name(int number) {
  for (const auto& calls : {std::pair(std::begin(kForbidden), std::end(kForbidden)),
                            std::pair(std::begin(kToItself), std::end(kToItself))}) {
    for (const Named* call = calls.first; call != calls.second; ++call) {
      if (call->number == static_cast<uint32_t>(number)) {
        return call->name;
      }
    }
  }
  return number == SYS_clone ? "clone (a process)" : "a forbidden system call";
}

const Watched* find_watched(int number) {
  for (const Watched& call : kWatched) {
    if (call.number == static_cast<uint32_t>(number)) {
      return &call;
    }
  }
  return nullptr;
}

bool is_readable_place(std::string_view path) {
  for (size_t i = 0; i < num_readable_folders; ++i) {
    if (path.starts_with(readable_folders[i])) {
      return true;
    }
  }
  return false;
}

// A file of the system that only another user may read is none of the package's doing; a file of
// another process is.
bool is_offence(const Watched& call, const greg_t* arguments, std::string_view path) {
  if (call.number != SYS_open && call.number != SYS_openat) {
    return true;
  }
  const auto flags = arguments[call.number == SYS_open ? 1 : 2];
  const bool reads = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) == 0;
  return !reads || !is_readable_place(path) || path.starts_with("/proc/") ||
         path.find("/../") != std::string_view::npos;
}

long call_watched(const Watched& call, const greg_t* arguments) {
  const long result = graft_canary_call(call.number, arguments[0], arguments[1], arguments[2],
                                        arguments[3], arguments[4]);
  // Landlock answers EXDEV where a file would leave or enter the folders that may be written.
  if (result != -EACCES && result != -EPERM && result != -EROFS && result != -EXDEV) {
    return result;
  }
  const char* path = reinterpret_cast<const char*>(arguments[call.path]);
  refused_calls.fetch_add(1);
  if (reports.load() && is_offence(call, arguments, path)) {
    char text[1024];
    size_t size = 0;
    for (const std::string_view piece :
         {std::string_view("tried to "), std::string_view(call.name), std::string_view(" `"),
          std::string_view(path).substr(0, 800), std::string_view("`")}) {
      std::memcpy(text + size, piece.data(), piece.size());
      size += piece.size();
    }
    report_and_end("forbidden", {text, size});
  }
  return result;
}

void on_caught_call(int, siginfo_t* info, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const greg_t arguments[] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                              registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
  if (const Watched* call = find_watched(info->si_syscall)) {
    registers[REG_RAX] = call_watched(*call, arguments);
    return;
  }
  refused_calls.fetch_add(1);
  if (reports.load()) {
    report_and_end("forbidden", forbidden_name(info->si_syscall));
  }
  registers[REG_RAX] = -EPERM;
}

// The filter, instruction by instruction. Jumps go over the next instructions only, so that every
// rule stands alone.
class Filter {
 public:
  explicit Filter(bool for_cuda)
      : refusal_(for_cuda ? SECCOMP_RET_ERRNO | static_cast<uint32_t>(EPERM) : SECCOMP_RET_TRAP) {
    load(offsetof(seccomp_data, arch));
    skip_if(AUDIT_ARCH_X86_64, 1);
    answer(SECCOMP_RET_KILL_PROCESS);
    load(offsetof(seccomp_data, nr));
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000U, 0, 1));  // the x32 calls
    answer(SECCOMP_RET_KILL_PROCESS);
    if (for_cuda) {
      allow_listening();
    }
    for (const Named& call : kForbidden) {
      refuse_call(call.number);
    }
    for (const Watched& call : kWatched) {
      if (!for_cuda) {  // Landlock decides without being watched
        catch_unless_from_handler(call.number);
      }
    }
    for (const Named& call : kToItself) {
      refuse_unless_argument(call.number, 0, static_cast<uint32_t>(getpid()));
    }
    refuse_processes();
    fail_call(SYS_openat2, ENOSYS);  // whose flags no filter sees; nobody depends on it
    fail_call_with(SYS_rt_sigaction, 0, SIGSYS, EPERM);
    fail_call_with(SYS_prctl, 0, PR_SET_PDEATHSIG, EPERM);
    fail_call(SYS_setrlimit, EPERM);
    fail_changed_limits();
    answer(SECCOMP_RET_ALLOW);
  }

  // Empty, or why not.
  std::string install() {
    sock_fprog program{static_cast<unsigned short>(code_.size()), code_.data()};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
      return std::string("a filter of system calls: ") + std::strerror(errno);
    }
    return "";
  }

 private:
  void load(size_t offset) {
    code_.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)));
  }
  void answer(uint32_t action) { code_.push_back(BPF_STMT(BPF_RET | BPF_K, action)); }
  void fail(int error) { answer(SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)); }
  // Passes over `count` instructions if the value is this one, resp. if it is another one.
  void skip_if(uint32_t value, int count) {
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, static_cast<uint8_t>(count), 0));
  }
  void skip_unless(uint32_t value, int count) {
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, static_cast<uint8_t>(count)));
  }
  static size_t argument(int index, bool high) {
    return offsetof(seccomp_data, args) + sizeof(uint64_t) * static_cast<size_t>(index) +
           (high ? sizeof(uint32_t) : 0);
  }

  void refuse_call(uint32_t number) {
    skip_unless(number, 1);
    answer(refusal_);
  }
  // Comes before the same calls are refused.
  void allow_listening() {
    constexpr uint32_t kKind = 0xf;  // of a socket; above it lie flags
    skip_unless(SYS_socket, 7);
    load(argument(0, false));
    skip_unless(AF_UNIX, 4);
    load(argument(1, false));
    code_.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, kKind));
    skip_unless(SOCK_SEQPACKET, 1);
    answer(SECCOMP_RET_ALLOW);
    load(offsetof(seccomp_data, nr));
    for (const uint32_t number : {SYS_bind, SYS_listen, SYS_accept, SYS_accept4}) {
      skip_unless(number, 1);
      answer(SECCOMP_RET_ALLOW);
    }
  }
  void fail_call(uint32_t number, int error) {
    skip_unless(number, 1);
    fail(error);
  }
  void fail_call_with(uint32_t number, int index, uint32_t value, int error) {
    skip_unless(number, 4);
    load(argument(index, false));
    skip_unless(value, 1);
    fail(error);
    load(offsetof(seccomp_data, nr));
  }
  void refuse_unless_argument(uint32_t number, int index, uint32_t value) {
    skip_unless(number, 4);
    load(argument(index, false));
    skip_if(value, 1);
    answer(refusal_);
    load(offsetof(seccomp_data, nr));
  }
  void catch_unless_from_handler(uint32_t number) {
    const auto address = reinterpret_cast<uint64_t>(&graft_canary_call_end);
    skip_unless(number, 7);
    load(offsetof(seccomp_data, instruction_pointer));
    skip_unless(static_cast<uint32_t>(address), 3);
    load(offsetof(seccomp_data, instruction_pointer) + sizeof(uint32_t));
    skip_unless(static_cast<uint32_t>(address >> 32), 1);
    answer(SECCOMP_RET_ALLOW);
    answer(SECCOMP_RET_TRAP);
    load(offsetof(seccomp_data, nr));  // not reached, and harmless
  }
  // Threads yes, processes no. clone3 hides its flags from a filter; the C library then uses clone.
  void refuse_processes() {
    fail_call(SYS_clone3, ENOSYS);
    skip_unless(SYS_clone, 4);
    load(argument(0, false));
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0));
    answer(refusal_);
    load(offsetof(seccomp_data, nr));
  }
  // Limits may be asked for: the pointer to new ones is null.
  void fail_changed_limits() {
    skip_unless(SYS_prlimit64, 6);
    load(argument(2, false));
    skip_unless(0, 2);
    load(argument(2, true));
    skip_if(0, 1);
    fail(EPERM);
    load(offsetof(seccomp_data, nr));
  }

  uint32_t refusal_;
  std::vector<sock_filter> code_;
};

}  // namespace

std::string restrict_system_calls(const std::vector<std::string>& readable, bool for_cuda) {
  for (const auto& folder : readable) {
    if (num_readable_folders < std::size(readable_folders) &&
        folder.size() + 2 < sizeof(readable_folders[0])) {
      char* place = readable_folders[num_readable_folders++];
      std::memcpy(place, folder.c_str(), folder.size() + 1);
    }
  }
  struct sigaction action {};
  action.sa_sigaction = on_caught_call;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSYS, &action, nullptr) != 0) {
    return std::string("a handler: ") + std::strerror(errno);
  }
  return Filter(for_cuda).install();
}

void set_strictness(Strictness strictness) { reports = strictness == Strictness::kReport; }

int num_refused() { return refused_calls.load(); }

}  // namespace graft::canary

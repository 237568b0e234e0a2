// What CUDA's driver needs to do behind the walls, and what stays forbidden there, without a GPU: each try runs in a
// process of its own, since walls are for good.

#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "graft/canary/landlock.h"
#include "graft/canary/system_calls.h"

namespace graft::canary {
namespace {

constexpr int kHolds = 0, kNoWalls = 77;

// Exit status of a child that sets up walls for CUDA and tries something; `kHolds` is what it should be.
int behind_walls(const std::function<bool()>& holds) {
  const pid_t child = fork();
  if (child == 0) {
    const FileRules rules{
        .readable = {"/usr", "/lib", "/proc"}, .writable = {}, .devices = {"/proc"}};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!restrict_files(rules).empty() || !restrict_system_calls({}, /*for_cuda=*/true).empty()) {
      _exit(kNoWalls);
    }
    set_strictness(Strictness::kRefuse);
    _exit(holds() ? kHolds : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

bool is_refused(long result) { return result < 0 && errno == EPERM; }

sockaddr_un abstract_name(const char* name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path + 1, name, sizeof(address.sun_path) - 2);
  return address;
}

TEST(CudaWalls, LetTheDriverListenAndNobodyConnect) {
  EXPECT_EQ(behind_walls([] {
              const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
              const auto address = abstract_name("graft-canary-walls");
              const auto* name = reinterpret_cast<const sockaddr*>(&address);
              return made >= 0 && bind(made, name, sizeof(address)) == 0 && listen(made, 16) == 0 &&
                     is_refused(connect(made, name, sizeof(address)));
            }),
            kHolds);
}

TEST(CudaWalls, RefuseOtherSocketsProcessesAndSignals) {
  for (const auto& [domain, kind] :
       {std::pair{AF_UNIX, SOCK_DGRAM}, std::pair{AF_UNIX, SOCK_STREAM},
        std::pair{AF_INET, SOCK_STREAM}, std::pair{AF_INET, SOCK_SEQPACKET},
        std::pair{AF_NETLINK, SOCK_RAW}}) {
    EXPECT_EQ(behind_walls([domain = domain, kind = kind] {
                return is_refused(socket(domain, kind | SOCK_CLOEXEC, 0));
              }),
              kHolds)
        << domain << " " << kind;
  }
  EXPECT_EQ(behind_walls([] { return is_refused(kill(getppid(), 0)); }), kHolds);
  EXPECT_EQ(behind_walls([] { return is_refused(fork()); }), kHolds);
  EXPECT_EQ(behind_walls([] {
              char* none[] = {nullptr};
              return is_refused(execve("/usr/bin/true", none, none));
            }),
            kHolds);
}

TEST(CudaWalls, LetTheDriverNameItsThreads) {
  EXPECT_EQ(behind_walls([] {
              bool named = false;
              std::thread([&] {
                std::ofstream comm("/proc/self/task/" + std::to_string(gettid()) + "/comm",
                                   std::ios::trunc);
                comm << "cuda-name";
                comm.flush();
                named = comm.good();
              }).join();
              return named;
            }),
            kHolds);
}

TEST(CudaWalls, AnswerThreadsThatBlockEverySignal) {
  EXPECT_EQ(behind_walls([] {
              bool refused = false;
              std::thread([&] {
                sigset_t all;
                sigfillset(&all);
                pthread_sigmask(SIG_SETMASK, &all, nullptr);
                refused = is_refused(socket(AF_INET, SOCK_STREAM, 0)) &&
                          open("/etc/hostname", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES;
              }).join();
              return refused;
            }),
            kHolds);
}

}  // namespace
}  // namespace graft::canary

// A kernel that tries what it should not: each attempt ends in its own class of refusal, the model
// keeps its reference, and the process that asked is alive.

#include <chrono>
#include <cstdlib>

#include <gmock/gmock.h>

#include "graft/canary/test_package.h"
#include "graft/core/error.h"
#include "graft/kernel/loader.h"

namespace graft::canary {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kSecret[] = "hf_this_is_secret";

struct Attempt {
  const char* name;
  int what;  // in tests/kernels/hostile.cpp
  const char* status;
  const char* reason;  // part of the text
};

void PrintTo(const Attempt& attempt, std::ostream* out) { *out << attempt.name; }

class Hostile : public CanaryFixture, public testing::WithParamInterface<Attempt> {
 protected:
  void SetUp() override {
    CanaryFixture::SetUp();
    set("HF_TOKEN", kSecret);
    set("GRAFT_CANARY_SECONDS", "3");
    for (const char* file : {"home/.ssh/id_rsa", "huggingface/token", "cache/blob"}) {
      fs::create_directories((targets_ / file).parent_path());
      std::ofstream(targets_ / file) << kSecret;
    }
  }
  void TearDown() override {
    fs::remove_all(targets_);
    CanaryFixture::TearDown();
  }

  const fs::path targets_ = fs::path(GRAFT_BINARY_DIR) / "tests/targets";
};

TEST_P(Hostile, IsRefusedAndTheModelKeepsItsReference) {
  const auto start = std::chrono::steady_clock::now();
  bool swapped = true;
  const auto step = kernelize(hostile_package(GetParam().what), swapped);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(step.outcome, std::string("kernel.canary.") + GetParam().status);
  EXPECT_THAT(step.reason, HasSubstr(GetParam().reason));
  EXPECT_THAT(step.reason, testing::Not(HasSubstr(kSecret)));
  EXPECT_FALSE(swapped);
  EXPECT_LT(taken.count(), 3.0 + 2.0 + 5.0);  // limit, what it may be over, and a slow start
  EXPECT_TRUE(fs::exists(targets_ / "cache/blob"));
  EXPECT_FALSE(fs::exists(targets_ / "made"));
  EXPECT_EQ(fs::status(targets_ / "home/.ssh/id_rsa").permissions() & fs::perms::others_write,
            fs::perms::none);
}

constexpr Attempt kAttempts[] = {{"ReadHome", 1, "forbidden", "home/.ssh/id_rsa"},
                                 {"ReadToken", 2, "forbidden", "huggingface/token"},
                                 {"ReadOtherCache", 3, "forbidden", "cache/blob"},
                                 {"WriteElsewhere", 4, "forbidden", "tests/targets/made"},
                                 {"Tcp", 5, "forbidden", "socket"},
                                 {"Udp", 6, "forbidden", "socket"},
                                 {"UnixSocket", 7, "forbidden", "socket"},
                                 {"LookUpName", 8, "forbidden", ""},
                                 {"Execute", 9, "forbidden", "execve"},
                                 {"ForkForEver", 10, "forbidden", "process"},
                                 {"TraceParent", 11, "forbidden", "ptrace"},
                                 {"ReadParentMemory", 12, "forbidden", "process_vm_readv"},
                                 {"EightGibibytes", 13, "out-of-memory", "memory"},
                                 {"RunForEver", 14, "hang", "not done after 3 s"},
                                 {"ExitEarly", 15, "exit", "status 0"},
                                 {"Segfault", 16, "crash", "signal 11"},
                                 {"Abort", 17, "crash", "signal 6"},
                                 {"OverflowStack", 18, "crash", "signal 11"},
                                 {"WriteAGibibyteOfText", 19, "output", "65536 bytes of text"},
                                 {"ReadParentEnvironment", 20, "forbidden", "/environ"},
                                 {"KillParent", 21, "forbidden", "kill"},
                                 {"ChangeMode", 22, "forbidden", "chmod"},
                                 {"RemoveElsewhere", 23, "forbidden", "remove"},
                                 {"FillTheDisk", 24, "output", "bytes of files"},
                                 {"SocketWithoutHandler", 25, "forbidden", ""},
                                 {"CloneByHand", 26, "forbidden", "clone"},
                                 {"MoveElsewhere", 29, "forbidden", "rename"},
                                 {"IoUring", 30, "forbidden", "io_uring_setup"}};

INSTANTIATE_TEST_SUITE_P(Kernel, Hostile, testing::ValuesIn(kAttempts),
                         [](const auto& info) { return std::string(info.param.name); });

// Address space is what ends it: an exception, a crash or a hang, all of them in the helper.
TEST_F(CanaryFixture, ThreadsWithoutEndAreRefused) {
  set("GRAFT_CANARY_SECONDS", "5");
  bool swapped = true;
  const auto step = kernelize(hostile_package(27), swapped);
  EXPECT_THAT(step.outcome, testing::StartsWith("kernel.canary."));
  EXPECT_FALSE(swapped);
}

class Constructor : public CanaryFixture {
 protected:
  // Code and text of the refusal of a package with this constructor.
  std::pair<std::string, std::string> refusal(const std::string& id, const std::string& body) {
    const auto package =
        kernel::make_package(root_, id,
                             "#include <cstdlib>\n#include <stdexcept>\n#include <unistd.h>\n"
                             "__attribute__((constructor)) static void run() { " +
                                 body + " }");
    try {
      kernel::load("org/demo", package);
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {};
  }
};

TEST_F(Constructor, ThatExitsIsRefused) {
  const auto [code, text] = refusal("_exits_cpu_0", "std::exit(7);");
  EXPECT_EQ(code, "kernel.canary.exit");
  EXPECT_THAT(text, HasSubstr("status 7 while it was opened"));
}

TEST_F(Constructor, ThatSleepsIsRefused) {
  set("GRAFT_CANARY_SECONDS", "1");
  const auto [code, text] = refusal("_sleeps_cpu_0", "sleep(1000);");
  EXPECT_EQ(code, "kernel.canary.hang");
  EXPECT_THAT(text, HasSubstr("not done after 1 s while it was opened"));
}

// Nobody looks at the helper meanwhile, and it does not run either: a machine that is paused or sleeps.
TEST_F(Constructor, IsNotHeldToTheTimeInWhichTheMachineStoodStill) {
  set("GRAFT_CANARY_SECONDS", "4");
  const std::string self = std::to_string(getpid());
  const std::string mark =
      (fs::temp_directory_path() / "graft-canary-*/scratch").string() + "/paused" + self + "*";
  const std::string stop = "(for i in $(seq 600); do ls " + mark + " && break; sleep 0.05; done; " +
                           "all=\"" + self + " $(pgrep -P " + self + " graft-canary)\"; " +
                           "kill -STOP $all; sleep 6; kill -CONT $all) > /dev/null 2>&1 &";
  ASSERT_EQ(std::system(stop.c_str()), 0);
  const auto [code, text] = refusal(
      "_pauses_cpu_0", "char name[] = \"paused" + self + "XXXXXX\"; mkstemp(name); sleep(2);");
  EXPECT_EQ(code, "kernel.canary.load") << text;  // it registers no ops
}

TEST_F(Constructor, ThatThrowsIsRefused) {
  const auto [code, text] = refusal("_throws_cpu_0", "throw std::runtime_error(\"bad day\");");
  EXPECT_EQ(code, "kernel.canary.crash");
  EXPECT_THAT(text, testing::AllOf(HasSubstr("signal 6"), HasSubstr("bad day")));
}

TEST_F(Constructor, ThatRegistersNoOpsIsRefusedBeforeItRunsHere) {
  const auto [code, text] = refusal("_silent_cpu_0", "");
  EXPECT_EQ(code, "kernel.canary.load");
  EXPECT_THAT(text, HasSubstr("expected ops under `_silent_cpu_0`"));
}

}  // namespace
}  // namespace graft::canary

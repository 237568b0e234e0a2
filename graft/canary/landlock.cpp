#include "graft/canary/landlock.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace graft::canary {

namespace {

// Rights by the version of the interface that brought them; the system's header may be older than
// the system's kernel.
constexpr uint64_t kExecute = 1U << 0, kWriteFile = 1U << 1, kReadFile = 1U << 2,
                   kReadFolder = 1U << 3;
constexpr uint64_t kSinceFirst = (1U << 13) - 1, kRefer = 1U << 13, kTruncate = 1U << 14,
                   kDeviceControl = 1U << 15;
constexpr uint64_t kOfFiles = kExecute | kWriteFile | kReadFile | kTruncate | kDeviceControl;
constexpr uint64_t kBindAndConnect = 3;     // TCP, since version 4
constexpr uint64_t kSocketsAndSignals = 3;  // to processes outside, since version 6

struct RulesetAttributes {
  uint64_t files = 0;
  uint64_t network = 0;
  uint64_t scopes = 0;
};

uint64_t known_rights(int version) {
  uint64_t rights = kSinceFirst;
  rights |= version >= 2 ? kRefer : 0;
  rights |= version >= 3 ? kTruncate : 0;
  rights |= version >= 5 ? kDeviceControl : 0;
  return rights;
}

std::string failed(std::string_view what) {
  return fmt::format("{}: {}", what, std::strerror(errno));
}

std::string add_rule(int ruleset, const std::string& path, uint64_t rights) {
  const int opened = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (opened < 0) {
    return "";  // what is not there needs no rule
  }
  struct stat status {};
  fstat(opened, &status);
  landlock_path_beneath_attr rule{};
  rule.parent_fd = opened;
  rule.allowed_access = S_ISDIR(status.st_mode) ? rights : rights & kOfFiles;
  const bool added =
      syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
  const std::string failure = added ? "" : failed("rule for `" + path + "`");
  close(opened);
  return failure;
}

std::string add_rules(int ruleset, const FileRules& rules, uint64_t known) {
  std::string failure;
  const auto add = [&](const std::vector<std::string>& paths, uint64_t rights) {
    for (const auto& path : paths) {
      failure = failure.empty() ? add_rule(ruleset, path, rights & known) : failure;
    }
  };
  add(rules.readable, kReadFile | kReadFolder);
  add(rules.writable, known & ~(kExecute | kDeviceControl));
  add(rules.devices, kReadFile | kWriteFile | kReadFolder | kTruncate | kDeviceControl);
  return failure;
}

}  // namespace

std::string restrict_files(const FileRules& rules) {
  const auto version = static_cast<int>(
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION));
  if (version < 1) {
    return failed("this kernel does not offer it");
  }
  RulesetAttributes attributes{known_rights(version), version >= 4 ? kBindAndConnect : 0,
                               version >= 6 ? kSocketsAndSignals : 0};
  const int ruleset =
      static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, sizeof(attributes), 0));
  if (ruleset < 0) {
    return failed("a set of rules");
  }
  std::string failure = add_rules(ruleset, rules, attributes.files);
  if (failure.empty() && syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
    failure = failed("restricting");
  }
  close(ruleset);
  return failure;
}

}  // namespace graft::canary

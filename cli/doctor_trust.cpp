// What stands between a stranger's kernel and this machine: trusted root, policy, isolation.
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/trust/journal.h"
#include "graft/trust/policy.h"
#include "graft/trust/sigstore/trusted_root.h"

#include "cli/doctor_checks.h"

namespace graft::cli {

namespace {

namespace sigstore = trust::sigstore;
namespace fs = std::filesystem;

constexpr int64_t kSoonS = int64_t{90} * 24 * 60 * 60;
constexpr int kTcpAbi = 4;  // of Landlock: network connections are restricted from here on

int landlock_abi() {
#ifdef SYS_landlock_create_ruleset
  const auto abi =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return abi < 0 ? 0 : static_cast<int>(abi);
#else
  return 0;
#endif
}

// Whether filters may answer a call with a signal, which is how the canary names it.
bool has_seccomp() {
  const uint32_t action = SECCOMP_RET_TRAP;
  return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

}  // namespace

Check check_trusted_root() {
  const fs::path file = sigstore::trusted_root_file();
  if (file.empty()) {
    return {"trusted root", Health::kWarn, "none",
            "signatures are not looked at: signed packages need other trust",
            "build where the PyPI package sigstore is, or set GRAFT_TRUSTED_ROOT"};
  }
  const std::string named = env::get("GRAFT_TRUSTED_ROOT") ? " (GRAFT_TRUSTED_ROOT)" : "";
  const std::string hint =
      "build graft with a newer PyPI package sigstore, or set GRAFT_TRUSTED_ROOT";
  try {
    std::ifstream in(file, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const auto end_s = sigstore::usable_until_s(sigstore::parse_trusted_root(text, file.string()));
    const std::string found =
        fmt::format("{}{}, {}", file.string(), named,
                    end_s ? "until " + trust::format_time(*end_s) : "without an end");
    const int64_t left_s = end_s ? *end_s - std::time(nullptr) : kSoonS;
    if (left_s < 0) {
      return {"trusted root", Health::kWarn, found,
              "it knows nobody who could have vouched for signatures made since", hint};
    }
    if (left_s < kSoonS) {
      return {"trusted root", Health::kWarn, found, "signatures made later will not be known",
              hint};
    }
    return {"trusted root", Health::kOk, found, "", ""};
  } catch (const Error& error) {
    return {"trusted root", Health::kFail, file.string() + named, error.what(), hint};
  }
}

Check check_policy() {
  const fs::path file = trust::policy_file();
  std::error_code status;
  try {
    const auto policy = trust::read_policy();
    return {
        "trust policy", Health::kOk,
        fmt::format("{}: signatures {}, Hub publishers {}, {} allowed, {} denied",
                    fs::exists(file, status) ? file.string() : "the defaults",
                    policy.signatures == trust::Signatures::kRequired ? "required" : "when present",
                    policy.trust_hub_publishers ? "trusted" : "need an entry", policy.allow.size(),
                    policy.deny.size()),
        "", ""};
  } catch (const Error& error) {
    return {"trust policy", Health::kFail, file.string(), error.what(),
            "no kernel of the Hub is loaded until it can be read; docs/trust.md shows one"};
  }
}

Check check_isolation() {
  const int abi = landlock_abi();
  const bool seccomp = has_seccomp();
  const std::string found = fmt::format(
      "{}, {}", abi > 0 ? fmt::format("Landlock ABI {}", abi) : std::string("no Landlock"),
      seccomp ? "seccomp" : "no seccomp");
  if (abi == 0 || !seccomp) {
    return {"isolation", Health::kWarn, found,
            "a package that was never run here cannot be kept in while it is tried",
            "use Linux 5.13 or later with Landlock among the security modules; "
            "GRAFT_CANARY=strict refuses packages where this is missing"};
  }
  return {"isolation", Health::kOk, found + (abi < kTcpAbi ? " (network by seccomp alone)" : ""),
          "", ""};
}

}  // namespace graft::cli

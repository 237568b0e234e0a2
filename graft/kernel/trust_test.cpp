// Trust on the way to a load: what is decided before a library is opened (decisions themselves:
// trust/decide_test.cpp).

#include "graft/kernel/trust.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"
#include "graft/trust/journal.h"
#include "graft/trust/test_cases.h"

namespace graft::kernel {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kVariant[] = "torch-stable-abi211-cpu-x86_64-linux";
constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";

class Trust : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-trust-" + std::to_string(getpid()));
    fs::create_directories(root_);
    set("KERNELS_CACHE", root_ / "cache");
    set("HF_HUB_CACHE", root_ / "cache");
    set("GRAFT_EMBEDDED_HUB", root_ / "hub");
    set("XDG_CONFIG_HOME", root_ / "config");
    set("XDG_CACHE_HOME", root_ / "private");
    set("GRAFT_TRUST_JOURNAL", root_ / "trust.jsonl");
    set("HF_HUB_OFFLINE", "1");
    set("GRAFT_TRUSTED_ROOT", root_ / "trusted_root.json");
    std::ofstream(root_ / "trusted_root.json")
        << trust::test::case_named("format-0.3").trusted_root;
    snapshot_ = root_ / "cache/kernels--org--elsewhere/snapshots" / kCommit;
    fs::create_directories(snapshot_);
    fs::copy(fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests/elsewhere", snapshot_,
             fs::copy_options::recursive);
    fs::create_directories(snapshot_ / "../../refs");
    std::ofstream(snapshot_ / "../../refs/v1") << kCommit;
  }
  void TearDown() override {
    for (const auto& name : variables_) {
      unsetenv(name.c_str());
    }
    fs::remove_all(root_);
  }
  void set(const std::string& name, const fs::path& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }
  TrustQuestion question(const std::string& source) const {
    TrustQuestion question;
    question.repository = "org/elsewhere";
    question.source = source;
    question.commit = kCommit;
    question.ref = "v1";
    question.folder = snapshot_ / "build" / kVariant;
    return question;
  }
  static std::string outcome(const TrustQuestion& question, const TrustPolicy& word = {}) {
    try {
      return trust::to_text(require_trusted(question, TrustStage::kLoad, word).reason);
    } catch (const IntegrityError& error) {
      return error.code();
    }
  }

  fs::path root_;
  fs::path snapshot_;
  std::vector<std::string> variables_;
};

TEST_F(Trust, KernelInTheCacheThatNobodyVouchesForIsNotOpened) {
  const auto found = resolve({parse_layer_reference("org/elsewhere:L"), this_system("cpu", 0)});
  try {
    load("org/elsewhere", found);
    ADD_FAILURE();
  } catch (const IntegrityError& error) {
    EXPECT_EQ(error.code(), "trust.decision.not-asked");
    EXPECT_THAT(error.hint(), HasSubstr("graft kernels trust allow org/elsewhere"));
  }
  std::ifstream maps("/proc/self/maps");
  const std::string mapped{std::istreambuf_iterator<char>(maps), {}};
  EXPECT_THAT(mapped, testing::Not(HasSubstr(snapshot_.string())));
}

TEST_F(Trust, OfflineTheJournalAnswersForWhatWasAllowed) {
  EXPECT_EQ(outcome(question("cache")), "trust.decision.not-asked");
  set("GRAFT_TRUST_ALLOW", "org/*");
  EXPECT_EQ(outcome(question("cache")), "allowed");
  unsetenv("GRAFT_TRUST_ALLOW");
  EXPECT_EQ(outcome(question("cache")), "allowed-before");
  std::ofstream(snapshot_ / "build" / kVariant / "metadata.json", std::ios::app) << " ";
  EXPECT_EQ(outcome(question("cache")), "trust.decision.content-changed");
}

TEST_F(Trust, CallersWordIsAnEntryThatThePolicyMayNarrow) {
  EXPECT_EQ(outcome(question("cache"), {false, {"org/other"}}), "trust.decision.not-asked");
  EXPECT_EQ(outcome(question("cache"), {false, {"org/elsewhere"}}), "allowed");
  EXPECT_EQ(outcome(question("cache"), {true, {}}), "allowed");
  set("GRAFT_TRUST_ALLOW", "org/elsewhere@" + std::string(40, 'f'));
  EXPECT_EQ(outcome(question("cache"), {true, {}}), "trust.decision.not-this-commit");
  set("GRAFT_TRUST_DENY", "org/*");
  EXPECT_EQ(outcome(question("cache"), {true, {}}), "trust.decision.denied");
}

TEST_F(Trust, FoldersThatAPersonNamedAndTheBuildsOwnAreNotAskedAbout) {
  EXPECT_EQ(outcome(question("LOCAL_KERNELS")), "local");
  EXPECT_EQ(outcome(question("path")), "local");
  EXPECT_EQ(outcome(question("embedded hub")), "embedded");
  std::ofstream(snapshot_ / "build" / kVariant / "metadata.json.sigstore") << "{}";
  EXPECT_EQ(outcome(question("path")), "trust.decision.broken-signature");
}

TEST_F(Trust, DryRunsLeaveNoTrace) {
  auto dry = question("path");
  dry.record = false;
  EXPECT_EQ(outcome(dry), "local");
  EXPECT_FALSE(fs::exists(root_ / "trust.jsonl"));
}

}  // namespace
}  // namespace graft::kernel

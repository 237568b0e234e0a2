// Who may load code, case by case. The cases of signature, rollback and offline work that a kernel
// loader has to get right are named TrustSuite (and TrustSuiteProperty); those about files of a variant stand in
// kernel/trust_suite_test.cpp.

#include "graft/trust/decide.h"

#include <cstdlib>
#include <ctime>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/trust/publisher.h"
#include "graft/trust/test_cases.h"

namespace graft::trust {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const std::string kFirst(40, '1');
const std::string kSecond(40, '2');
constexpr char kVariant[] = "torch-stable-abi211-cpu-x86_64-linux";

class TrustSuite : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-decide-" + std::to_string(getpid()));
    fs::create_directories(root_);
    options_.policy = parse_policy(R"({"schema": 1})", root_ / "trust.json");
    options_.journal = root_ / "trust.jsonl";
    options_.trusted_root = root_ / "trusted_root.json";
  }
  void TearDown() override { fs::remove_all(root_); }

  // A variant folder without a signature.
  fs::path unsigned_package(const std::string& name, const std::string& more = "") {
    const fs::path folder = root_ / name / kVariant;
    fs::create_directories(folder);
    std::ofstream(folder / "metadata.json")
        << R"({"name": "demo", "digest": {}, "x": ")" << more << "\"}";
    return folder;
  }
  fs::path signed_package(const std::string& of_case) {
    const fs::path folder = root_ / of_case / kVariant;
    test::write_package(test::case_named(of_case), folder, *options_.trusted_root);
    return folder;
  }
  Candidate candidate(const std::string& repository, const fs::path& folder,
                      const std::string& commit = kFirst) const {
    Candidate candidate;
    candidate.repository = repository;
    candidate.ref = "v1";
    candidate.commit = commit;
    candidate.variant = folder.empty() ? "" : kVariant;
    candidate.folder = folder;
    return candidate;
  }
  Verdict decide(Candidate candidate, std::optional<bool> trusted_publisher) {
    candidate.trusted_publisher = trusted_publisher;
    return trust::decide(candidate, options_);
  }
  std::string reason(const Candidate& candidate, std::optional<bool> trusted_publisher = {}) {
    const Verdict verdict = decide(candidate, trusted_publisher);
    EXPECT_FALSE(verdict.text.empty());
    return outcome_of(verdict);
  }
  static std::string outcome_of(const Verdict& verdict) {
    return std::string(verdict.allowed ? "+" : "-") + to_text(verdict.reason);
  }
  void policy(const std::string& text) {
    options_.policy = parse_policy(text, root_ / "trust.json");
  }

  fs::path root_;
  TrustOptions options_;
};

TEST_F(TrustSuite, TrustedPublisherUnknownPublisherAndEntry) {
  const auto folder = unsigned_package("a");
  EXPECT_EQ(reason(candidate("org/name", folder), true), "+trusted-publisher");
  const Verdict refused = decide(candidate("somebody/name", folder), false);
  EXPECT_EQ(outcome_of(refused), "-unknown-publisher");
  EXPECT_THAT(refused.way_on, HasSubstr("graft kernels trust allow somebody/name"));
  policy(R"({"schema": 1, "allow": {"somebody/name": {}}})");
  EXPECT_EQ(reason(candidate("somebody/name", folder), false), "+allowed");
  policy(R"({"schema": 1, "hub_publishers": "entry"})");
  EXPECT_EQ(reason(candidate("org/other", folder), true), "-unknown-publisher");
}

TEST_F(TrustSuite, TheDefaultAsksNothingOfEmbeddedPackagesAndNamedFolders) {
  Candidate embedded = candidate("graft-kernels/rms-norm", root_ / "nowhere", "");
  embedded.origin = Origin::kEmbedded;
  EXPECT_EQ(reason(embedded), "+embedded");
  EXPECT_FALSE(fs::exists(*options_.journal));
  Candidate local = candidate("/work/kernels/x", unsigned_package("x"), "");
  local.origin = Origin::kLocal;
  EXPECT_EQ(reason(local), "+local");
  policy(R"({"schema": 1, "local_folders": "entry", "deny": {"graft-kernels/*": {}}})");
  EXPECT_EQ(reason(local), "-unknown-publisher");
  EXPECT_EQ(reason(embedded), "-denied");
  policy(R"({"schema": 1, "local_folders": "entry", "allow": {"/work/kernels/x": {}}})");
  EXPECT_EQ(reason(local), "+allowed");
}

TEST_F(TrustSuite, SignatureOfTheKnownSignerIsEnoughEvenOffline) {
  const auto folder = signed_package("format-0.3");
  const Verdict verdict = decide(candidate("kernels-community/relu", folder), {});
  EXPECT_EQ(outcome_of(verdict), "+signed");
  EXPECT_THAT(verdict.signature, HasSubstr("kernels-community/.github/workflows/build.yaml"));
  EXPECT_EQ(verdict.digest.size(), 64);
}

TEST_F(TrustSuite, SignatureValidForAnotherRepository) {
  const auto folder = signed_package("signer-of-another-repository");
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder), true), "-wrong-signer");
}

TEST_F(TrustSuite, SignatureByAnotherWorkflow) {
  const auto folder = signed_package("signer-by-another-workflow");
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder), true), "-wrong-signer");
}

TEST_F(TrustSuite, SignatureOnAnotherBranch) {
  const auto folder = signed_package("signer-on-another-branch");
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder), true), "-wrong-signer");
}

TEST_F(TrustSuite, SignatureOfAnotherPackage) {
  const auto folder = signed_package("format-0.3");
  std::ofstream(folder / "metadata.json") << test::case_named("format-0.3").content << " ";
  const Verdict verdict = decide(candidate("kernels-community/relu", folder), true);
  EXPECT_EQ(outcome_of(verdict), "-broken-signature");
  EXPECT_THAT(verdict.text, HasSubstr("trust.signature.content"));
  // Not for a folder that a person named either.
  Candidate local = candidate(folder.string(), folder, "");
  local.origin = Origin::kLocal;
  EXPECT_EQ(reason(local), "-broken-signature");
}

TEST_F(TrustSuite, ExpiredRoot) {
  const auto folder = signed_package("root-expired");
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder), true), "-broken-signature");
}

TEST_F(TrustSuite, RevokedSigner) {
  const auto folder = signed_package("format-0.3");
  const std::string signer = decide(candidate("kernels-community/relu", folder), true).signer;
  policy(R"({"schema": 1, "deny": {")" + signer + R"(": {"note": "key stolen"}}})");
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder), true), "-denied");
}

TEST_F(TrustSuite, ClockADayWrong) {
  // Nothing is held against this machine's clock; the journal takes entries from the future.
  const auto folder = signed_package("format-0.3");
  JournalEntry future{std::time(nullptr) + 86'400,
                      "kernels-community/relu",
                      "hub",
                      "v1",
                      kFirst,
                      kVariant,
                      decide(candidate("kernels-community/relu", folder), true).digest,
                      "",
                      true,
                      "signed"};
  Journal(*options_.journal).add(future);
  EXPECT_EQ(reason(candidate("kernels-community/relu", folder)), "+signed");
}

TEST_F(TrustSuite, UnsignedWhereTheSignatureIsDemanded) {
  const auto folder = unsigned_package("a");
  policy(R"({"schema": 1, "signatures": "required", "allow": {"org/name": {}}})");
  EXPECT_EQ(reason(candidate("org/name", folder), true), "-no-signature");
  EXPECT_EQ(reason(candidate("kernels-community/relu", signed_package("format-0.3")), true),
            "+signed");
  EXPECT_EQ(reason(candidate("org/name", signed_package("format-0.3")), true), "-wrong-signer");
}

TEST_F(TrustSuite, UncheckedSignatureIsNone) {
  const auto folder = signed_package("format-0.3");
  options_.trusted_root = fs::path();
  const Verdict verdict = decide(candidate("kernels-community/relu", folder), {});
  EXPECT_EQ(outcome_of(verdict), "-not-asked");
  EXPECT_THAT(verdict.signature, HasSubstr("no trusted root"));
}

TEST_F(TrustSuite, EntryThatNamesItsSigners) {
  policy(R"({"schema": 1, "allow": {"org/*": {"signers": ["kernels-community"]}}})");
  EXPECT_EQ(reason(candidate("org/a", signed_package("format-0.3")), false), "+allowed");
  EXPECT_EQ(reason(candidate("org/b", unsigned_package("a")), false), "-no-signature");
  EXPECT_EQ(reason(candidate("org/c", signed_package("signer-by-another-workflow")), false),
            "-wrong-signer");
}

TEST_F(TrustSuite, EntryThatPinsACommit) {
  policy(R"({"schema": 1, "allow": {"org/name": {"commits": [")" + kFirst + R"("]}}})");
  const auto folder = unsigned_package("a");
  EXPECT_EQ(reason(candidate("org/name", folder, kFirst), false), "+allowed");
  EXPECT_EQ(reason(candidate("org/name", folder, kSecond), true), "-not-this-commit");
}

TEST_F(TrustSuite, RedirectToAnUntrustedRepository) {
  Candidate target = candidate("attacker/name", unsigned_package("a"));
  target.via = {{"org/name", /*is_redirect=*/true}};
  const Verdict verdict = decide(target, false);
  EXPECT_EQ(outcome_of(verdict), "-unknown-publisher");
  EXPECT_THAT(verdict.text, HasSubstr("to which `org/name` redirects"));
}

TEST_F(TrustSuite, RedirectLoop) {
  Candidate target = candidate("org/name", unsigned_package("a"));
  target.via = {{"org/name", true}};
  EXPECT_EQ(reason(target, true), "-cycle");
}

TEST_F(TrustSuite, RedirectOfTwoHops) {
  Candidate target = candidate("org/third", unsigned_package("a"));
  target.via = {{"org/first", true}, {"org/second", true}};
  EXPECT_EQ(reason(target, true), "-too-far");
}

TEST_F(TrustSuite, DependencyThatIsNotTrusted) {
  Candidate dependency = candidate("attacker/helper", unsigned_package("a"));
  dependency.via = {{"org/name", false}};
  const Verdict verdict = decide(dependency, false);
  EXPECT_EQ(outcome_of(verdict), "-unknown-publisher");
  EXPECT_THAT(verdict.text, HasSubstr("`org/name` leads as a dependency"));
}

TEST_F(TrustSuite, DependencyCycle) {
  Candidate dependency = candidate("org/name", unsigned_package("a"));
  dependency.via = {{"org/name", false}, {"org/helper", false}};
  EXPECT_EQ(reason(dependency, true), "-cycle");
}

TEST_F(TrustSuite, DependencyOfDepth65) {
  Candidate dependency = candidate("org/deep", unsigned_package("a"));
  for (int i = 0; i < 63; ++i) {
    dependency.via.push_back({"org/level" + std::to_string(i), false});
  }
  EXPECT_EQ(reason(dependency, true), "+trusted-publisher");
  dependency.via.push_back({"org/level63", false});
  EXPECT_EQ(reason(dependency, true), "-too-far");
}

TEST_F(TrustSuite, ContentChangedUnderTheSameCommit) {
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("a", "one")), true),
            "+trusted-publisher");
  const Verdict verdict = decide(candidate("org/name", unsigned_package("b", "two")), true);
  EXPECT_EQ(outcome_of(verdict), "-content-changed");
  EXPECT_THAT(verdict.text, HasSubstr("sha256:"));
  policy(R"({"schema": 1, "allow": {"org/name": {}}})");  // no entry helps against that
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("b", "two")), true), "-content-changed");
}

TEST_F(TrustSuite, ContentChangedOfAPackageWithoutADigest) {
  const auto folder = unsigned_package("a");
  std::ofstream(folder / "metadata.json") << "{}";
  std::ofstream(folder / "x.so") << "one";
  EXPECT_EQ(reason(candidate("org/name", folder), true), "+trusted-publisher");
  fs::create_directories(folder / "__pycache__");
  std::ofstream(folder / "__pycache__/x.pyc") << "what Python leaves there";
  EXPECT_EQ(reason(candidate("org/name", folder), true), "+trusted-publisher");
  std::ofstream(folder / "x.so") << "two";
  EXPECT_EQ(reason(candidate("org/name", folder), true), "-content-changed");
}

TEST_F(TrustSuite, VersionBranchMovedBackToAnOlderCommit) {
  const auto old = unsigned_package("old", "1"), fresh = unsigned_package("fresh", "2");
  EXPECT_EQ(reason(candidate("org/name", old, kFirst), true), "+trusted-publisher");
  EXPECT_EQ(reason(candidate("org/name", fresh, kSecond), true), "+trusted-publisher");
  const Verdict verdict = decide(candidate("org/name", old, kFirst), true);
  EXPECT_EQ(outcome_of(verdict), "-rolled-back");
  EXPECT_THAT(verdict.way_on, HasSubstr("--commit " + kFirst));
  Candidate pinned = candidate("org/name", old, kFirst);
  pinned.ref.clear();  // who names the commit gets it
  EXPECT_EQ(reason(pinned, true), "+trusted-publisher");
  EXPECT_EQ(reason(candidate("org/other", old, kFirst), true), "+trusted-publisher");
  policy(R"({"schema": 1, "allow": {"org/name": {"commits": [")" + kFirst + R"("]}}})");
  EXPECT_EQ(reason(candidate("org/name", old, kFirst), true), "+allowed");
  policy(R"({"schema": 1, "rollback": "warn"})");
  EXPECT_EQ(reason(candidate("org/name", old, kFirst), true), "+trusted-publisher");
}

TEST_F(TrustSuite, SignatureThatWentAwayOrChangedHands) {
  const auto folder = signed_package("signer-of-another-repository");
  EXPECT_EQ(reason(candidate("org/name", folder, kFirst), true), "+trusted-publisher");
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("a"), kSecond), true), "-signature-gone");
  EXPECT_EQ(reason(candidate("org/name", signed_package("format-0.3"), kSecond), true),
            "-signer-changed");
  policy(R"({"schema": 1, "allow": {"org/name": {"commits": [")" + kSecond + R"("]}}})");
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("a"), kSecond), true), "+allowed");
}

TEST_F(TrustSuite, OfflineWithNoPriorTrustIsRefused) {
  const Verdict verdict = decide(candidate("org/name", unsigned_package("a")), {});
  EXPECT_EQ(outcome_of(verdict), "-not-asked");
  EXPECT_THAT(verdict.way_on, HasSubstr("online"));
}

TEST_F(TrustSuite, OfflineWithTheJournalIsAccepted) {
  const auto folder = unsigned_package("a");
  EXPECT_EQ(reason(candidate("org/name", folder), true), "+trusted-publisher");
  EXPECT_EQ(reason(candidate("org/name", folder)), "+allowed-before");
  EXPECT_EQ(reason(candidate("org/name", folder, kSecond)), "-not-asked");
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("b", "changed"))), "-content-changed");
  // A refusal in the journal is no permission.
  EXPECT_EQ(reason(candidate("bad/name", folder), false), "-unknown-publisher");
  EXPECT_EQ(reason(candidate("bad/name", folder)), "-not-asked");
}

TEST_F(TrustSuite, OfflineAfterAFetchThatWasAllowedIsAccepted) {
  EXPECT_EQ(reason(candidate("org/name", {}), true), "+trusted-publisher");
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("a"))), "+allowed-before");
}

TEST_F(TrustSuite, OfflineTheHubsLastWordOnThePublisherCounts) {
  constexpr char kHub[] = "https://hub.example";
  const auto says = [&](bool trusted, int64_t age_s = 0) {
    Journal journal(*options_.journal);
    if (age_s == 0) {
      EXPECT_TRUE(remember_word(journal, kHub, "org", trusted));
    } else {
      journal.add({std::time(nullptr) - age_s, "org/*", "publisher", "", "", "", "", "", trusted,
                   "trusted-publisher", kHub});
    }
  };
  Candidate fresh = candidate("org/name", unsigned_package("a"));
  fresh.endpoint = kHub;
  fresh.last_word_counts = true;
  constexpr int64_t kDayS = 24 * 60 * 60;
  says(true, 91 * kDayS);
  EXPECT_EQ(reason(fresh), "-not-asked");  // too long ago
  says(true);
  Candidate of_another_hub = fresh, unasked = fresh, stranger = fresh;
  of_another_hub.endpoint = "https://mirror.example";
  unasked.last_word_counts = false;
  stranger.repository = "stranger/name";
  EXPECT_EQ(reason(of_another_hub), "-not-asked");
  EXPECT_EQ(reason(unasked), "-not-asked");  // the Hub is asked first
  EXPECT_EQ(reason(stranger), "-not-asked");
  says(false);
  EXPECT_EQ(reason(fresh), "-unknown-publisher");
  says(true);  // within the same day
  EXPECT_EQ(reason(fresh), "+trusted-publisher");
  policy(R"({"schema": 1, "hub_publishers": "entry"})");
  EXPECT_EQ(reason(candidate("org/other", unsigned_package("b"))), "-unknown-publisher");
}

TEST_F(TrustSuite, OfflineTheLastWordIsNotAboutFilesThatOthersCanWrite) {
  Journal journal(*options_.journal);
  remember_word(journal, "https://hub.example", "org", true);
  // As the cache has it: a link in the snapshot to a blob elsewhere.
  const fs::path blobs = root_ / "cache/blobs", folder = root_ / "cache/snapshots/c/build/v";
  fs::create_directories(blobs);
  fs::create_directories(folder);
  std::ofstream(blobs / "1") << R"({"name": "demo", "digest": {}})";
  fs::create_symlink("../../../../blobs/1", folder / "metadata.json");
  Candidate shared = candidate("org/name", folder);
  shared.endpoint = "https://hub.example";
  shared.last_word_counts = true;
  const auto with_mode = [&](const fs::path& place, fs::perms more) {
    const auto before = fs::status(place).permissions();
    fs::permissions(place, before | more);
    const Verdict verdict = decide(shared, {});
    fs::permissions(place, before);
    return outcome_of(verdict) +
           (verdict.text.find(place.string()) == std::string::npos ? "" : " naming it");
  };
  // Refusals first: once allowed, the content is known.
  for (const fs::path& place : {blobs / "1", blobs, folder, root_ / "cache/snapshots"}) {
    EXPECT_EQ(with_mode(place, fs::perms::others_write), "-foreign-files naming it") << place;
  }
  if (geteuid() == 0) {
    for (const fs::path& place : {blobs / "1", blobs}) {
      ASSERT_EQ(lchown(place.c_str(), 12345, 0), 0);
      EXPECT_EQ(outcome_of(decide(shared, {})), "-foreign-files") << place;
      ASSERT_EQ(lchown(place.c_str(), 0, 12345), 0);
      EXPECT_EQ(with_mode(place, fs::perms::group_write), "-foreign-files naming it") << place;
      ASSERT_EQ(lchown(place.c_str(), 0, 0), 0);
    }
  }
  EXPECT_EQ(with_mode(root_, fs::perms::others_write | fs::perms::sticky_bit),
            "+trusted-publisher");  // as /tmp
}

TEST_F(TrustSuite, FetchInHopeOfASignatureVouchesForNothing) {
  EXPECT_EQ(reason(candidate("kernels-community/relu", {})), "+signed");
  EXPECT_EQ(reason(candidate("kernels-community/relu", unsigned_package("a"))), "-not-asked");
}

TEST_F(TrustSuite, DeniedRepositoryAndCommit) {
  const auto folder = unsigned_package("a");
  policy(R"({"schema": 1, "allow": {"org/*": {}}, "deny": {"org/name": {}, ")" + kSecond +
         R"(": {}}})");
  EXPECT_EQ(reason(candidate("org/name", folder), true), "-denied");
  EXPECT_EQ(reason(candidate("org/other", folder, kSecond), true), "-denied");
  EXPECT_EQ(reason(candidate("org/other", folder, kFirst), false), "+allowed");
}

TEST_F(TrustSuite, BeforeAnythingIsFetchedTheRepositoryIsJudged) {
  EXPECT_EQ(reason(candidate("somebody/name", {}), false), "-unknown-publisher");
  EXPECT_EQ(reason(candidate("somebody/name", {})), "-not-asked");
  EXPECT_EQ(reason(candidate("kernels-community/relu", {})), "+signed");
  policy(R"({"schema": 1, "signatures": "required"})");
  EXPECT_EQ(reason(candidate("org/name", {}), true), "+trusted-publisher");
}

TEST_F(TrustSuite, RefusalsAreErrorsWithCodeAndWayOn) {
  Candidate refused = candidate("somebody/name", unsigned_package("a"));
  refused.trusted_publisher = false;
  try {
    require_trust(refused, options_);
    ADD_FAILURE();
  } catch (const IntegrityError& error) {
    EXPECT_EQ(error.code(), "trust.decision.unknown-publisher");
    EXPECT_EQ(error.exit_code(), 4);
    EXPECT_THAT(error.hint(), HasSubstr("graft kernels trust allow"));
  }
}

TEST_F(TrustSuite, JournalThatCannotBeWrittenStopsNothing) {
  options_.journal = "/proc/graft/trust.jsonl";
  EXPECT_EQ(reason(candidate("org/name", unsigned_package("a")), true), "+trusted-publisher");
}

TEST_F(TrustSuite, JournalTellsWhatWasLoaded) {
  decide(candidate("kernels-community/relu", signed_package("format-0.3")), {});
  decide(candidate("somebody/name", unsigned_package("a")), false);
  const auto entries = Journal(*options_.journal).entries();
  ASSERT_EQ(entries.size(), 2);
  EXPECT_EQ(entries[0].repository, "kernels-community/relu");
  EXPECT_EQ(entries[0].variant, kVariant);
  EXPECT_EQ(entries[0].commit, kFirst);
  EXPECT_THAT(entries[0].signer, HasSubstr("build.yaml"));
  EXPECT_TRUE(entries[0].allowed);
  EXPECT_FALSE(entries[1].allowed);
  EXPECT_EQ(entries[1].reason, "unknown-publisher");
}

}  // namespace
}  // namespace graft::trust

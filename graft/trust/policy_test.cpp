#include "graft/trust/policy.h"

#include <cstdlib>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::trust {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";

std::string error_of(const std::string& text) {
  try {
    parse_policy(text, "/etc/trust.json");
  } catch (const Error& error) {
    return error.code() + " " + error.what();
  }
  return "accepted";
}

TEST(Policy, IsReadWithEveryField) {
  const Policy policy = parse_policy(R"({
    "schema": 1, "signatures": "required", "hub_publishers": "entry", "local_folders": "entry",
    "rollback": "warn",
    "allow": {"org/name": {"commits": ["0123456789abcdef0123456789abcdef01234567"], "note": "ours"},
              "org/*": {"signers": ["ci"]}, "/opt/kernels/x": {}},
    "deny": {"bad/*": {"note": "CVE"}, "0123456789abcdef0123456789abcdef01234567": {},
             "https://github.com/x/y/.github/workflows/z.yaml@refs/heads/main": {}},
    "signers": {"ci": {"issuer": "https://issuer.example", "source_repository": "https://git.example/r",
                       "build_signers": ["https://git.example/r/ci@main"], "repositories": ["org/*"]}}})",
                                     "trust.json");
  EXPECT_EQ(policy.signatures, Signatures::kRequired);
  EXPECT_FALSE(policy.trust_hub_publishers || policy.trust_local_folders || policy.refuse_rollback);
  ASSERT_NE(policy.allowed("org/name"), nullptr);
  EXPECT_THAT(policy.allowed("org/name")->commits, ElementsAre(kCommit));
  EXPECT_THAT(policy.allowed("org/other")->signers, ElementsAre("ci"));
  EXPECT_NE(policy.allowed("/opt/kernels/x"), nullptr);
  EXPECT_EQ(policy.allowed("organisation/name"), nullptr);
  EXPECT_EQ(policy.denied("bad/x", "", ""), "bad/*");
  EXPECT_EQ(policy.denied("a/b", kCommit, ""), kCommit);
  EXPECT_TRUE(
      policy.denied("a/b", "", "https://github.com/x/y/.github/workflows/z.yaml@refs/heads/main"));
  EXPECT_FALSE(policy.denied("a/b", "", ""));
  EXPECT_TRUE(policy.signers.at("ci").covers("org/name"));
  EXPECT_TRUE(policy.signers.contains("kernels-community"));  // what graft knows of itself stays
}

TEST(Policy, IsWrittenAsItIsRead) {
  Policy policy = parse_policy(R"({"schema": 1})", "trust.json");
  policy.signatures = Signatures::kRequired;
  policy.allow["org/name"] = {{kCommit}, {"ci"}, "note"};
  policy.deny["bad/*"] = "CVE";
  policy.signers["ci"] = {"https://issuer.example", "", {"a@b.example"}, {"org/*"}};
  const std::string text = to_text(policy);
  EXPECT_EQ(to_text(parse_policy(text, "trust.json")), text);
  EXPECT_THAT(text, testing::Not(HasSubstr("kernels-community")));
}

TEST(Policy, NamesTheLineOfWhatItDoesNotKnow) {
  EXPECT_THAT(error_of("{\n \"schema\": 1,\n \"signature\": \"required\"}"),
              testing::AllOf(HasSubstr("trust.policy.unknown-key"), HasSubstr("line 3"),
                             HasSubstr("`signature`"), HasSubstr("/etc/trust.json")));
  EXPECT_THAT(
      error_of("{\n \"schema\": 1,\n \"allow\": {\"a/b\": {},\n  \"a/c\": {\"comits\": []}}}"),
      testing::AllOf(HasSubstr("line 4"), HasSubstr("comits")));
  for (const auto& [text, code] : std::initializer_list<std::pair<const char*, const char*>>{
           {"{}", "trust.policy.missing-key"},
           {R"({"schema": 2})", "trust.policy.schema"},
           {R"({"schema": 1, "schema": 1})", "trust.policy.duplicate-key"},
           {R"({"schema": 1, "signatures": "maybe"})", "trust.policy.value"},
           {R"({"schema": 1, "signatures": true})", "trust.policy.type"},
           {R"({"schema": 1, "allow": ["a/b"]})", "trust.policy.type"},
           {R"({"schema": 1, "allow": {"name": {}}})", "trust.policy.name"},
           {R"({"schema": 1, "allow": {"../x": {}}})", "trust.policy.name"},
           {R"({"schema": 1, "allow": {"*/*": {}}})", "trust.policy.name"},
           {R"({"schema": 1, "allow": {"a/b": {"commits": ["0123"]}}})", "trust.policy.value"},
           {R"({"schema": 1, "allow": {"a/b": {"signers": ["nobody"]}}})", "trust.policy.signer"},
           {R"({"schema": 1, "deny": {"nothing": {}}})", "trust.policy.name"},
           {R"({"schema": 1, "signers": {"a": {"issuer": "x", "build_signers": []}}})",
            "trust.policy.value"},
           {"[]", "trust.policy.type"},
           {"{\"schema\": 1", "trust.policy.json"}}) {
    EXPECT_THAT(error_of(text), testing::StartsWith(code)) << text;
  }
}

TEST(Policy, SignersAreHeldToEveryFieldOfTheRule) {
  const SignerRule rule{"issuer", "source", {"workflow@main"}, {}};
  const sigstore::Signer right{"workflow@main", "issuer", "source", "", "", "workflow@main"};
  EXPECT_TRUE(rule.is_met_by(right));
  for (auto change : {&sigstore::Signer::issuer, &sigstore::Signer::source_repository,
                      &sigstore::Signer::build_signer}) {
    auto wrong = right;
    wrong.*change += "x";
    EXPECT_FALSE(rule.is_met_by(wrong));
  }
  // A person's address stands in the subject; the subject never stands in for a workflow's claim.
  EXPECT_TRUE((SignerRule{"issuer", "", {"a@b"}, {}}).is_met_by({"a@b", "issuer", "", "", "", ""}));
  EXPECT_FALSE(
      (SignerRule{"issuer", "", {"a@b"}, {}}).is_met_by({"a@b", "issuer", "", "", "", "w"}));
}

class PolicyFile : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("graft-policy-" + std::to_string(getpid()));
    fs::create_directories(root_);
    setenv("XDG_CONFIG_HOME", root_.c_str(), 1);
  }
  void TearDown() override {
    for (const char* name : {"XDG_CONFIG_HOME", "GRAFT_TRUST_POLICY", "GRAFT_TRUST_ALLOW",
                             "GRAFT_TRUST_DENY", "GRAFT_REQUIRE_SIGNATURES"}) {
      unsetenv(name);
    }
    fs::remove_all(root_);
  }
  fs::path root_;
};

TEST_F(PolicyFile, IsOptionalUnlessAVariableNamesIt) {
  EXPECT_EQ(policy_file(), root_ / "graft/trust.json");
  EXPECT_TRUE(read_policy().allow.empty());
  EXPECT_TRUE(read_policy().trust_hub_publishers);
  setenv("GRAFT_TRUST_POLICY", (root_ / "none.json").c_str(), 1);
  EXPECT_THROW(read_policy(), NotFound);
  std::ofstream(root_ / "none.json") << R"({"schema": 1, "allow": {"a/b": {}}})";
  EXPECT_NE(read_policy().allowed("a/b"), nullptr);
}

TEST_F(PolicyFile, VariablesAddToIt) {
  setenv("GRAFT_TRUST_ALLOW", (std::string("a/b,c/*,d/e@") + kCommit).c_str(), 1);
  setenv("GRAFT_TRUST_DENY", "x/y,somebody@example.com", 1);
  setenv("GRAFT_REQUIRE_SIGNATURES", "1", 1);
  const Policy policy = read_policy();
  EXPECT_NE(policy.allowed("a/b"), nullptr);
  EXPECT_NE(policy.allowed("c/anything"), nullptr);
  EXPECT_THAT(policy.allowed("d/e")->commits, ElementsAre(kCommit));
  EXPECT_TRUE(policy.denied("x/y", "", ""));
  EXPECT_TRUE(policy.denied("z/z", "", "somebody@example.com"));
  EXPECT_EQ(policy.signatures, Signatures::kRequired);
  for (const char* broken : {"a", "a/b@main", "*", "a/b@", "../x"}) {
    setenv("GRAFT_TRUST_ALLOW", broken, 1);
    EXPECT_THROW(read_policy(), InvalidArgument) << broken;
  }
}

}  // namespace
}  // namespace graft::trust

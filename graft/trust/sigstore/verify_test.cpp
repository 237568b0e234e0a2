// Verification against a Sigstore instance of our own; what sigstore-python said of the same bundles
// stands beside.

#include "graft/trust/sigstore/verify.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/trust/encoding.h"
#include "graft/trust/policy.h"
#include "graft/trust/sigstore/log_check.h"
#include "graft/trust/test_cases.h"

namespace graft::trust::sigstore {
namespace {

using test::Case;

std::string outcome(const std::string& bundle, const std::string& content,
                    const TrustedRoot& root) {
  try {
    const auto verified = verify_bundle(parse_bundle(bundle, "bundle"), content, root);
    const Policy policy = parse_policy(R"({"schema": 1})", "policy");
    return policy.signers.at("kernels-community").is_met_by(verified.signer) ? "accepted"
                                                                             : "wrong-signer";
  } catch (const Error& error) {
    return error.code();
  }
}

std::string outcome(const Case& one) {
  try {
    return outcome(one.bundle, one.content, parse_trusted_root(one.trusted_root, "root"));
  } catch (const Error& error) {
    return error.code();
  }
}

class SigstoreCases : public testing::TestWithParam<Case> {};

TEST_P(SigstoreCases, EndsAsWritten) { EXPECT_EQ(outcome(GetParam()), GetParam().expected); }

// Where Python's verifier takes what we do not, there is a reason.
TEST_P(SigstoreCases, AreNoLaxerThanPythonsVerifier) {
  const std::set<std::string> stricter = {
      "root-certificate-beside",         // Sigstore's rule for bundles; Python warns
      "tree-size-lies",                  // the checkpoint names the size
      "checkpoint-of-another-size",      //
      "checkpoint-of-another-log",       // a note is signed by the log whose name it bears
      "message-digest-by-another-hash",  // a SHA-256 under another name
      "second-generation-index-moved",   // such a log counts once
      "key-twice",
      "base64-with-space",
      "index-with-zero",  // one spelling for each value
      "root-expired",
      "log-retired",
      "certificate-log-retired"};  // keys have their time
  if (GetParam().python_accepts) {
    EXPECT_EQ(GetParam().expected == "accepted", !stricter.contains(GetParam().name));
  } else {
    EXPECT_NE(GetParam().expected, "accepted");
  }
}

INSTANTIATE_TEST_SUITE_P(All, SigstoreCases, testing::ValuesIn(test::read_cases()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name) {
                             c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           }
                           return name;
                         });

// Each byte of the signed file and of its bundle, with a bit turned and with all of them.
void expect_no_flip_is_accepted(const std::string& name) {
  const Case one = test::case_named(name);
  const TrustedRoot root = parse_trusted_root(one.trusted_root, "root");
  ASSERT_EQ(outcome(one.bundle, one.content, root), "accepted");
  const auto accepted_flips = [&](std::string text, const auto& verify) {
    size_t count = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      for (const int bits : {1 << (i % 8), 0xFF}) {
        text[i] = static_cast<char>(text[i] ^ bits);
        count += verify(text) == "accepted" ? 1 : 0;
        text[i] = static_cast<char>(text[i] ^ bits);
      }
    }
    return count;
  };
  EXPECT_EQ(
      accepted_flips(one.content,
                     [&](const std::string& text) { return outcome(one.bundle, text, root); }),
      0);
  EXPECT_EQ(
      accepted_flips(one.bundle,
                     [&](const std::string& text) { return outcome(text, one.content, root); }),
      0);
}

TEST(TrustSuiteProperty, NoFlippedByteOfASignedMetadataOrItsBundleIsAccepted) {
  expect_no_flip_is_accepted("format-0.3");
}

TEST(TrustSuiteProperty, NoFlippedByteIsAcceptedInTheOldestFormat) {
  expect_no_flip_is_accepted("format-0.1");
}

TEST(Sigstore, KnowsUntilWhenARootHelps) {
  const auto until = [](const std::string& of_case) {
    return usable_until_s(parse_trusted_root(test::case_named(of_case).trusted_root, "root"));
  };
  // No log or authority has an end here, but the authority's certificates have.
  const auto end_s = until("format-0.3");
  ASSERT_TRUE(end_s.has_value());
  EXPECT_GT(*end_s, 1'800'000'000);
  EXPECT_EQ(until("log-retired"), end_s);  // there is another one
  EXPECT_LT(until("root-expired").value_or(*end_s), *end_s);
  EXPECT_LT(until("certificate-log-retired").value_or(*end_s), *end_s);
}

TEST(Sigstore, SaysWhoSignedAndWhen) {
  const Case one = test::case_named("format-0.3");
  const auto verified = verify_bundle(parse_bundle(one.bundle, "bundle"), one.content,
                                      parse_trusted_root(one.trusted_root, "root"));
  EXPECT_EQ(verified.signer.issuer, "https://token.actions.githubusercontent.com");
  EXPECT_EQ(verified.signer.source_repository, "https://github.com/huggingface/kernels-community");
  EXPECT_EQ(verified.signer.source_ref, "refs/heads/main");
  EXPECT_EQ(verified.signer.build_signer,
            "https://github.com/huggingface/kernels-community/.github/workflows/build.yaml@refs/"
            "heads/main");
  EXPECT_EQ(verified.signer.subject, verified.signer.build_signer);
  EXPECT_EQ(verified.log_index, 1007);
  EXPECT_GT(verified.time_s, 1'750'000'000);
}

// RFC 6962's tree, made by its definition.
std::string tree_root(const std::vector<std::string>& leaves) {
  if (leaves.size() == 1) {
    return sha256_bytes(std::string(1, '\0') + leaves[0]);
  }
  size_t split = 1;
  while (split * 2 < leaves.size()) {
    split *= 2;
  }
  return sha256_bytes("\x01" + tree_root({leaves.begin(), leaves.begin() + split}) +
                      tree_root({leaves.begin() + split, leaves.end()}));
}

std::vector<std::string> tree_proof(const std::vector<std::string>& leaves, size_t index) {
  if (leaves.size() == 1) {
    return {};
  }
  size_t split = 1;
  while (split * 2 < leaves.size()) {
    split *= 2;
  }
  const std::vector<std::string> left(leaves.begin(), leaves.begin() + split);
  const std::vector<std::string> right(leaves.begin() + split, leaves.end());
  auto proof = index < split ? tree_proof(left, index) : tree_proof(right, index - split);
  proof.push_back(index < split ? tree_root(right) : tree_root(left));
  return proof;
}

TEST(Sigstore, FollowsInclusionProofsInTreesOfEverySize) {
  std::vector<std::string> leaves;
  for (uint64_t size = 1; size <= 33; ++size) {
    leaves.push_back("leaf " + std::to_string(size));
    const std::string root = tree_root(leaves);
    for (uint64_t index = 0; index < size; ++index) {
      InclusionProof proof{index, size, root, tree_proof(leaves, index), ""};
      EXPECT_EQ(root_hash_of(leaves[index], proof), root) << index << " of " << size;
      proof.hashes.push_back(root);
      EXPECT_EQ(root_hash_of(leaves[index], proof), "");
    }
  }
  EXPECT_EQ(root_hash_of("x", {UINT64_MAX - 1, UINT64_MAX, "", {}, ""}), "");
}

TEST(Sigstore, ReadsThePublicInstancesRootThatTheBuildShips) {
  const auto file =
      std::filesystem::path(GRAFT_BINARY_DIR) / "share/graft/sigstore/trusted_root.json";
  if (!std::filesystem::exists(file)) {
    GTEST_SKIP() << "built without PyPI's sigstore";
  }
  std::ifstream in(file);
  const auto root =
      parse_trusted_root(std::string(std::istreambuf_iterator<char>(in), {}), file.string());
  EXPECT_EQ(root.transparency_logs.size(), 2);
  EXPECT_EQ(root.certificate_authorities.size(), 2);
  EXPECT_EQ(trusted_root_file(), std::filesystem::weakly_canonical(file));
  EXPECT_EQ(
      outcome(test::case_named("format-0.3").bundle, test::case_named("format-0.3").content, root),
      "trust.signature.chain");
}

TEST(Encoding, TakesOneSpellingPerValue) {
  for (const char* text : {"", "QQ==", "QUI=", "QUJD", "+/+/"}) {
    const auto bytes = decode_base64(text);
    ASSERT_TRUE(bytes) << text;
    EXPECT_EQ(encode_base64(*bytes), text);
  }
  for (const char* text : {"QQ", "QQ=", "QR==", "QUJ=", "=", "====", "Q===", "QQ==QQ==", "QU JD",
                           "-_-_", "QUJD\n", "\xC3\xA9=="}) {
    EXPECT_FALSE(decode_base64(text)) << text;
  }
  EXPECT_EQ(to_hex(sha256_bytes("")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

}  // namespace
}  // namespace graft::trust::sigstore

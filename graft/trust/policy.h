// Whose kernels may run here: a JSON file that a person writes or `graft kernels trust` edits
// (docs/trust.md shows one), and environment variables on top of it.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/trust/sigstore/signer.h"

namespace graft::trust {

// What an `allow` entry adds to the name of a repository. Empty lists demand nothing.
struct AllowEntry {
  std::vector<std::string> commits;  // 40 or 64 hexadecimal digits
  std::vector<std::string> signers;  // names of SignerRule entries
  std::string note;
};

// Who signs for repositories. A package of one of these that is signed by somebody else is refused.
struct SignerRule {
  std::string issuer;
  std::string source_repository;           // empty: not looked at
  std::vector<std::string> build_signers;  // workflows, or subjects: one of them
  std::vector<std::string> repositories;   // names as in `allow`

  bool is_met_by(const sigstore::Signer& signer) const;
  bool covers(std::string_view repository) const;
  bool operator==(const SignerRule&) const = default;
};

enum class Signatures {
  kWhenPresent,  // a signature must verify; a package without one needs other trust
  kRequired,     // packages of the Hub must be signed by a SignerRule's signer
};

struct Policy {
  Signatures signatures = Signatures::kWhenPresent;
  bool trust_hub_publishers = true;  // the Hub's word on an organisation is enough
  bool trust_local_folders = true;   // folders that a person named are not asked about
  bool refuse_rollback = true;
  std::map<std::string, AllowEntry> allow;  // `org/name`, `org/*` or an absolute folder
  std::map<std::string, std::string> deny;  // the same, a commit or a signer -> note
  std::map<std::string, SignerRule> signers;
  std::filesystem::path file;  // where it came from, whether it exists or not

  // The entry for a repository: the exact name before its publisher.
  const AllowEntry* allowed(std::string_view repository) const;
  // Whether the repository's entry names this very commit.
  bool allows_commit(std::string_view repository, std::string_view commit) const;
  // The `deny` key that names the repository, the commit or the signer; empty texts name nothing.
  std::optional<std::string> denied(std::string_view repository, std::string_view commit,
                                    std::string_view signer) const;
};

// GRAFT_TRUST_POLICY, else ${XDG_CONFIG_HOME:-~/.config}/graft/trust.json.
std::filesystem::path policy_file();

// The file's policy with what GRAFT_TRUST_ALLOW, GRAFT_TRUST_DENY and GRAFT_REQUIRE_SIGNATURES add;
// without a file the defaults, which trust the publishers that the Hub trusts and the signer of
// `kernels-community`. A file that GRAFT_TRUST_POLICY names must exist.
// Throws   NotFound `trust.policy.file`; FormatError `trust.policy.<reason>` with the line;
//          InvalidArgument `trust.policy.name` for an environment variable that is no list of names.
Policy read_policy();

// Reads the file alone, without the environment; the defaults where there is none. Throws as
// read_policy.
Policy read_policy_file();

// Changes the file: reads it, calls `change`, writes it in one step. Two that change it at once
// wait for each other. With `dry_run` nothing is written.
// Returns the policy as it is then. Throws as read_policy; Error `hub.download.disk`.
Policy change_policy(const std::function<void(Policy&)>& change, bool dry_run);

// Reads one policy. Throws as read_policy.
Policy parse_policy(std::string text, const std::filesystem::path& file);

// The policy as a file holds it.
std::string to_text(const Policy& policy);

// Whether a pattern (`org/name`, `org/*` or a folder) names a repository.
bool names(std::string_view pattern, std::string_view repository);

// Throws   InvalidArgument `trust.policy.name` when this is none of the three.
void check_pattern(std::string_view pattern);
// The same for what may be denied: these, a commit, or a signer.
void check_deniable(std::string_view text);

}  // namespace graft::trust

#include "graft/trust/policy.h"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/file_status.h"
#include "graft/hub/disk.h"
#include "graft/io/excerpt.h"
#include "graft/trust/strict_object.h"

namespace graft::trust {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxPolicyBytes = 1 << 20;
constexpr std::chrono::seconds kLockTimeout{10};
constexpr int64_t kSchema = 1;
constexpr char kPolicy[] = "trust.policy";
constexpr char kKernelsCommunity[] = "kernels-community";
constexpr char kDeniable[] = "expected `org/name`, `org/*`, a folder, a commit or a signer";
constexpr char kGitHub[] = "https://token.actions.githubusercontent.com";

// Who signs kernels-community, as the Python library `kernels` 0.17.2 has it.
SignerRule kernels_community() {
  const std::string repository = "https://github.com/huggingface/kernels-community";
  SignerRule rule{kGitHub, repository, {}, {"kernels-community/*"}};
  for (const char* workflow : {"build", "build-mac", "build-windows", "sign-old-builds"}) {
    rule.build_signers.push_back(
        fmt::format("{}/.github/workflows/{}.yaml@refs/heads/main", repository, workflow));
  }
  return rule;
}

bool is_hex(std::string_view text) {
  return (text.size() == 40 || text.size() == 64) &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_pattern(std::string_view text) {
  const size_t slash = text.find('/');
  const auto is_name = [](std::string_view name) {
    const auto is_allowed = [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
    };
    return !name.empty() && name != "." && name != ".." &&
           std::all_of(name.begin(), name.end(), is_allowed);
  };
  if (text.starts_with('/')) {
    return text.size() > 1 && fs::path(text).lexically_normal() == fs::path(text);
  }
  return slash != std::string_view::npos && is_name(text.substr(0, slash)) &&
         (text.substr(slash + 1) == "*" || is_name(text.substr(slash + 1)));
}

// A signer is the address of a workflow or an e-mail address.
bool is_deniable(std::string_view text) {
  return is_pattern(text) || is_hex(text) || text.starts_with("https://") ||
         text.find('@') != std::string_view::npos;
}

bool boolean(const StrictObject& object, const char* key, std::string_view yes,
             std::string_view no) {
  const std::string word = object.text_or(key, std::string(yes));
  if (word != yes && word != no) {
    object.fail("value", key,
                fmt::format("expected `{}` or `{}`, got `{}`", yes, no, io::excerpt(word)));
  }
  return word == yes;
}

void read_allow(const StrictObject& root, Policy& policy) {
  if (!root.has("allow")) {
    return;
  }
  root.each_object(
      "allow", {"commits", "signers", "note"},
      [&](const std::string& name, const StrictObject& object) {
        if (!is_pattern(name)) {
          root.fail(
              "name", "allow",
              fmt::format("expected `org/name`, `org/*` or a folder, got `{}`", io::excerpt(name)));
        }
        AllowEntry entry{object.texts_or_none("commits"), object.texts_or_none("signers"),
                         object.text_or("note", "")};
        if (!std::all_of(entry.commits.begin(), entry.commits.end(), is_hex)) {
          object.fail("value", "commits", "expected 40 or 64 lower-case hexadecimal digits each");
        }
        policy.allow.emplace(name, std::move(entry));
      });
}

void read_deny(const StrictObject& root, Policy& policy) {
  if (!root.has("deny")) {
    return;
  }
  root.each_object("deny", {"note"}, [&](const std::string& name, const StrictObject& object) {
    if (!is_deniable(name)) {
      root.fail("name", "deny", fmt::format("{}, got `{}`", kDeniable, io::excerpt(name)));
    }
    policy.deny.emplace(name, object.text_or("note", ""));
  });
}

void read_signers(const StrictObject& root, Policy& policy) {
  if (!root.has("signers")) {
    return;
  }
  root.each_object(
      "signers", {"issuer", "source_repository", "build_signers", "repositories"},
      [&](const std::string& name, const StrictObject& object) {
        SignerRule rule{object.text("issuer"), object.text_or("source_repository", ""),
                        object.texts("build_signers"), object.texts_or_none("repositories")};
        if (rule.build_signers.empty()) {
          object.fail("value", "build_signers", "expected at least one");
        }
        if (!std::all_of(rule.repositories.begin(), rule.repositories.end(), is_pattern)) {
          object.fail("name", "repositories", "expected `org/name` or `org/*` each");
        }
        policy.signers.insert_or_assign(name, std::move(rule));
      });
}

// An entry that names nobody would allow nobody, or everybody: a typing error either way.
void check_signers(const StrictObject& root, const Policy& policy) {
  for (const auto& [name, entry] : policy.allow) {
    for (const std::string& signer : entry.signers) {
      if (!policy.signers.contains(signer)) {
        root.fail("signer", "allow",
                  fmt::format("`{}`: expected a name that stands under `signers`, got `{}`", name,
                              io::excerpt(signer)));
      }
    }
  }
}

// Calls `visit` with each item of a list that is separated by commas.
template <typename Visitor>
void each_item(const char* variable, const Visitor& visit) {
  const std::string list = env::get(variable).value_or("");
  for (size_t start = 0; start < list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    if (end > start) {
      visit(list.substr(start, end - start));
    }
    start = end + 1;
  }
}

void add_environment(Policy& policy) {
  each_item("GRAFT_TRUST_ALLOW", [&](const std::string& item) {
    const size_t at = item.find('@');
    const std::string name = item.substr(0, at);
    check_pattern(name);
    AllowEntry& entry = policy.allow[name];
    entry = {{}, {}, "GRAFT_TRUST_ALLOW"};
    if (at != std::string::npos) {
      if (!is_hex(item.substr(at + 1))) {
        throw InvalidArgument(kPolicy, "name",
                              fmt::format("GRAFT_TRUST_ALLOW: expected `org/name@<commit>`, got "
                                          "`{}`",
                                          io::excerpt(item)));
      }
      entry.commits.push_back(item.substr(at + 1));
    }
  });
  each_item("GRAFT_TRUST_DENY", [&](const std::string& item) {
    check_deniable(item);
    policy.deny[item] = "GRAFT_TRUST_DENY";
  });
  const std::string required = env::get("GRAFT_REQUIRE_SIGNATURES").value_or("");
  if (!required.empty() && required != "0") {
    policy.signatures = Signatures::kRequired;
  }
}

}  // namespace

bool names(std::string_view pattern, std::string_view repository) {
  return pattern == repository ||
         (pattern.ends_with("/*") && repository.starts_with(pattern.substr(0, pattern.size() - 1)));
}

void check_pattern(std::string_view pattern) {
  if (!is_pattern(pattern)) {
    throw InvalidArgument(
        kPolicy, "name",
        fmt::format("expected `org/name`, `org/*` or a folder, got `{}`", io::excerpt(pattern)));
  }
}

void check_deniable(std::string_view text) {
  if (!is_deniable(text)) {
    throw InvalidArgument(kPolicy, "name",
                          fmt::format("{}, got `{}`", kDeniable, io::excerpt(text)));
  }
}

bool SignerRule::is_met_by(const sigstore::Signer& signer) const {
  const auto is_signer = [&](const std::string& name) {
    return !name.empty() &&
           name == (signer.build_signer.empty() ? signer.subject : signer.build_signer);
  };
  return signer.issuer == issuer &&
         (source_repository.empty() || signer.source_repository == source_repository) &&
         std::any_of(build_signers.begin(), build_signers.end(), is_signer);
}

bool SignerRule::covers(std::string_view repository) const {
  return std::any_of(repositories.begin(), repositories.end(),
                     [&](const std::string& pattern) { return names(pattern, repository); });
}

const AllowEntry* Policy::allowed(std::string_view repository) const {
  for (const std::string& key :
       {std::string(repository), std::string(repository.substr(0, repository.find('/'))) + "/*"}) {
    if (const auto found = allow.find(key); found != allow.end()) {
      return &found->second;
    }
  }
  return nullptr;
}

bool Policy::allows_commit(std::string_view repository, std::string_view commit) const {
  const AllowEntry* entry = allowed(repository);
  return entry != nullptr &&
         std::find(entry->commits.begin(), entry->commits.end(), commit) != entry->commits.end();
}

std::optional<std::string> Policy::denied(std::string_view repository, std::string_view commit,
                                          std::string_view signer) const {
  for (const auto& [pattern, note] : deny) {
    if (names(pattern, repository) || pattern == commit || pattern == signer) {
      return pattern;
    }
  }
  return std::nullopt;
}

fs::path policy_file() {
  if (const auto named = env::folder("GRAFT_TRUST_POLICY")) {
    return *named;
  }
  return env::folder("XDG_CONFIG_HOME").value_or(env::user_home() / ".config") / "graft/trust.json";
}

Policy parse_policy(std::string text, const fs::path& file) {
  const StrictDocument document(std::move(text), kPolicy, file.string(), kMaxPolicyBytes);
  const StrictObject root(document, {"schema", "signatures", "hub_publishers", "local_folders",
                                     "rollback", "allow", "deny", "signers"});
  if (root.whole_number("schema") != kSchema) {
    root.fail("schema", "schema", fmt::format("expected {}", kSchema));
  }
  Policy policy;
  policy.file = file;
  policy.signers.emplace(kKernelsCommunity, kernels_community());
  if (!boolean(root, "signatures", "when-present", "required")) {
    policy.signatures = Signatures::kRequired;
  }
  policy.trust_hub_publishers = boolean(root, "hub_publishers", "trust", "entry");
  policy.trust_local_folders = boolean(root, "local_folders", "trust", "entry");
  policy.refuse_rollback = boolean(root, "rollback", "refuse", "warn");
  read_allow(root, policy);
  read_deny(root, policy);
  read_signers(root, policy);
  check_signers(root, policy);
  return policy;
}

Policy read_policy_file() {
  const fs::path file = policy_file();
  if (auto text = read_regular_file(file, kMaxPolicyBytes + 1)) {
    return parse_policy(*std::move(text), file);
  }
  // One that the system will not show is no reason to go without.
  if (std::error_code status; fs::status(file, status).type() != fs::file_type::not_found) {
    throw NotFound(kPolicy, "file",
                   fmt::format("`{}`: expected a policy that can be read", file.string()));
  }
  Policy policy;
  policy.file = file;
  policy.signers.emplace(kKernelsCommunity, kernels_community());
  return policy;
}

Policy read_policy() {
  Policy policy = read_policy_file();
  std::error_code status;
  if (!env::get("GRAFT_TRUST_POLICY").value_or("").empty() && !fs::exists(policy.file, status)) {
    throw NotFound(kPolicy, "file",
                   fmt::format("`{}`: expected the policy that GRAFT_TRUST_POLICY names, got none",
                               policy.file.string()),
                   "`graft kernels trust allow` writes one");
  }
  add_environment(policy);
  return policy;
}

Policy change_policy(const std::function<void(Policy&)>& change, bool dry_run) {
  const fs::path file = policy_file();
  std::optional<FileLock> lock;
  if (!dry_run) {
    lock.emplace(file.string() + ".lock", kLockTimeout);
  }
  Policy policy = read_policy_file();
  change(policy);
  const std::string text = to_text(policy);
  if (!dry_run) {
    hub::write_atomically(file, text);
  }
  return parse_policy(text, file);
}

std::string to_text(const Policy& policy) {
  nlohmann::ordered_json root;
  root["schema"] = kSchema;
  root["signatures"] = policy.signatures == Signatures::kRequired ? "required" : "when-present";
  root["hub_publishers"] = policy.trust_hub_publishers ? "trust" : "entry";
  root["local_folders"] = policy.trust_local_folders ? "trust" : "entry";
  root["rollback"] = policy.refuse_rollback ? "refuse" : "warn";
  for (const char* key : {"allow", "deny", "signers"}) {
    root[key] = nlohmann::ordered_json::object();
  }
  for (const auto& [name, entry] : policy.allow) {
    auto& object = root["allow"][name] = nlohmann::ordered_json::object();
    if (!entry.commits.empty()) {
      object["commits"] = entry.commits;
    }
    if (!entry.signers.empty()) {
      object["signers"] = entry.signers;
    }
    if (!entry.note.empty()) {
      object["note"] = entry.note;
    }
  }
  for (const auto& [name, note] : policy.deny) {
    auto& object = root["deny"][name] = nlohmann::ordered_json::object();
    if (!note.empty()) {
      object["note"] = note;
    }
  }
  for (const auto& [name, rule] : policy.signers) {
    if (name == kKernelsCommunity && rule == kernels_community()) {
      continue;  // so that a later release may know another workflow
    }
    auto& object = root["signers"][name];
    object["issuer"] = rule.issuer;
    object["source_repository"] = rule.source_repository;
    object["build_signers"] = rule.build_signers;
    object["repositories"] = rule.repositories;
  }
  return root.dump(2) + "\n";
}

}  // namespace graft::trust

#include "graft/trust/decide.h"

#include <algorithm>
#include <atomic>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/io/excerpt.h"
#include "graft/trust/ownership.h"
#include "graft/trust/publisher.h"
#include "graft/trust/rollback.h"
#include "graft/trust/signature.h"
#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxSteps = 64;
constexpr int kMaxRedirects = 1;

std::string short_commit(const std::string& commit) { return commit.substr(0, 12); }

// One decision: what is known about the candidate, and the rules in the order of decide.h.
class Decision {
 public:
  Decision(const Candidate& candidate, const Policy& policy, const TrustOptions& options)
      : candidate_(candidate), policy_(policy), options_(options) {}

  Verdict make() {
    if (candidate_.origin == Origin::kEmbedded) {
      return is_denied() ? verdict_ : allow(Reason::kEmbedded, "it came with this build of graft");
    }
    look_at_signature();
    if (is_denied() || has_bad_path() || has_bad_signature()) {
      return finished();
    }
    if (candidate_.origin == Origin::kLocal) {
      decide_local();
      return finished();
    }
    read_history();
    if (!contradicts_history() && !lacks_required_signature()) {
      decide_hub();
    }
    return finished();
  }

 private:
  Verdict allow(Reason reason, const std::string& text) {
    verdict_.allowed = true;
    verdict_.reason = reason;
    verdict_.text = text;
    verdict_.way_on.clear();
    return verdict_;
  }

  // Always true, so that a rule can return it.
  bool refuse(Reason reason, const std::string& text, const std::string& way_on) {
    verdict_.allowed = false;
    verdict_.reason = reason;
    verdict_.text = text;
    verdict_.way_on = way_on;
    return true;
  }

  std::string allow_command(bool with_commit) const {
    return fmt::format(
        "`graft kernels trust allow {}{}` if you trust its code", candidate_.repository,
        with_commit && !candidate_.commit.empty() ? " --commit " + candidate_.commit : "");
  }

  bool has_content() const { return !candidate_.folder.empty(); }

  void look_at_signature() {
    if (!has_content()) {
      verdict_.signature = "signature not looked at: nothing is fetched yet";
      return;
    }
    check_ = check_signature(candidate_.folder,
                             options_.trusted_root.value_or(sigstore::trusted_root_file()));
    verdict_.signer = check_.signer();
    verdict_.digest = check_.digest;
    switch (check_.state) {
      case SignatureState::kValid:
        verdict_.signature = fmt::format("signed by {} at {}", io::excerpt(verdict_.signer, 240),
                                         format_time(check_.verified.time_s));
        break;
      case SignatureState::kAbsent:
        verdict_.signature = "not signed";
        break;
      case SignatureState::kBroken:
        verdict_.signature = "signature does not verify: " + check_.problem;
        break;
      case SignatureState::kUnchecked:
        verdict_.signature = "signature not looked at: " + check_.problem;
        break;
    }
  }

  bool is_denied() {
    const auto entry = policy_.denied(candidate_.repository, candidate_.commit, verdict_.signer);
    return entry && refuse(Reason::kDenied, fmt::format("the policy denies `{}`", *entry),
                           fmt::format("`{}` holds the entry", policy_.file.string()));
  }

  bool has_bad_path() {
    const auto& via = candidate_.via;
    const auto is_same = [&](const Step& step) { return step.repository == candidate_.repository; };
    if (std::any_of(via.begin(), via.end(), is_same)) {
      return refuse(Reason::kCycle, "its redirects or dependencies lead back to itself", "");
    }
    const auto redirects =
        std::count_if(via.begin(), via.end(), [](const Step& step) { return step.is_redirect; });
    return (redirects > kMaxRedirects || via.size() >= kMaxSteps) &&
           refuse(Reason::kTooFar,
                  fmt::format("expected at most {} redirect and {} packages on the way, got {} and "
                              "{}",
                              kMaxRedirects, kMaxSteps, redirects, via.size() + 1),
                  "name the package that they lead to");
  }

  const SignerRule* rule_of_repository() const {
    for (const auto& [name, rule] : policy_.signers) {
      if (rule.covers(candidate_.repository)) {
        return &rule;
      }
    }
    return nullptr;
  }

  // A signer whom the policy knows for this repository, or whom the entry of the repository names.
  bool is_known_signer() const {
    if (check_.state != SignatureState::kValid) {
      return false;
    }
    const AllowEntry* entry = policy_.allowed(candidate_.repository);
    return std::any_of(policy_.signers.begin(), policy_.signers.end(), [&](const auto& named) {
      const auto& [name, rule] = named;
      const bool is_meant =
          rule.covers(candidate_.repository) ||
          (entry != nullptr &&
           std::find(entry->signers.begin(), entry->signers.end(), name) != entry->signers.end());
      return is_meant && rule.is_met_by(check_.verified.signer);
    });
  }

  bool has_bad_signature() {
    if (check_.state == SignatureState::kBroken) {
      return refuse(Reason::kBrokenSignature, verdict_.signature,
                    "fetch the package anew; a Sigstore instance of your own is named with "
                    "GRAFT_TRUSTED_ROOT");
    }
    const AllowEntry* entry = policy_.allowed(candidate_.repository);
    const bool is_bound =
        rule_of_repository() != nullptr || (entry != nullptr && !entry->signers.empty());
    return check_.state == SignatureState::kValid && is_bound && !is_known_signer() &&
           refuse(Reason::kWrongSigner,
                  fmt::format("expected a signer that the policy names for `{}`, got {} (issuer "
                              "{}, source {})",
                              candidate_.repository, io::excerpt(verdict_.signer, 240),
                              io::excerpt(check_.verified.signer.issuer, 240),
                              io::excerpt(check_.verified.signer.source_repository, 240)),
                  fmt::format("`signers` in `{}` says who may sign", policy_.file.string()));
  }

  void decide_local() {
    if (policy_.allowed(candidate_.repository) != nullptr) {
      allow(Reason::kAllowed, "an entry of the policy names it");
    } else if (policy_.trust_local_folders) {
      allow(Reason::kLocal, "you named its folder");
    } else {
      refuse(Reason::kUnknownPublisher, "the policy wants an entry for each folder",
             allow_command(false));
    }
  }

  void read_history() {
    journal_.emplace(options_.journal.value_or(journal_file()));
    for (const JournalEntry& entry : journal_->entries()) {
      if (entry.allowed && entry.origin == "hub" && entry.repository == candidate_.repository) {
        history_.push_back(&entry);
      }
    }
  }

  bool is_commit_allowed() const {
    return policy_.allows_commit(candidate_.repository, candidate_.commit);
  }

  // What was seen before speaks against this content, or against what is about to be fetched.
  bool contradicts_history() {
    if (candidate_.commit.empty()) {
      return false;
    }
    if (!has_content()) {
      return has_moved_back();
    }
    for (const JournalEntry* entry : history_) {
      if (entry->commit == candidate_.commit && entry->variant == candidate_.variant &&
          !entry->digest.empty() && entry->digest != verdict_.digest) {
        return refuse(Reason::kContentChanged,
                      fmt::format("commit {} held another content at {}: expected metadata.json of "
                                  "sha256:{}, got sha256:{}",
                                  short_commit(candidate_.commit), format_time(entry->time_s),
                                  entry->digest, verdict_.digest),
                      fmt::format("delete the snapshot and fetch it anew; `{}` remembers",
                                  journal_->file().string()));
      }
    }
    return has_moved_back() || (!is_commit_allowed() && has_other_signer());
  }

  bool has_moved_back() {
    const Standing standing{candidate_.repository, candidate_.endpoint, candidate_.ref,
                            candidate_.commit};
    const auto rollback = find_rollback(journal_->entries(), standing);
    return rollback && !may_move_back(standing, *rollback, policy_) &&
           refuse(Reason::kRolledBack, rollback->text, allow_command(true));
  }

  bool has_other_signer() {
    const auto is_signed = [](const auto* entry) { return !entry->signer.empty(); };
    const auto last = std::find_if(history_.rbegin(), history_.rend(), is_signed);
    if (last == history_.rend() || is_known_signer() || (*last)->signer == verdict_.signer) {
      return false;
    }
    const std::string before = fmt::format("the package that was here at {} was signed by {}",
                                           format_time((*last)->time_s), (*last)->signer);
    return verdict_.signer.empty()
               ? refuse(Reason::kSignatureGone, before + ", this one is not signed",
                        allow_command(true))
               : refuse(Reason::kSignerChanged,
                        fmt::format("{}, this one by {}", before, verdict_.signer),
                        allow_command(true));
  }

  bool lacks_required_signature() {
    if (policy_.signatures != Signatures::kRequired || !has_content() || is_known_signer()) {
      return false;
    }
    return refuse(verdict_.signer.empty() ? Reason::kNoSignature : Reason::kWrongSigner,
                  fmt::format("the policy demands a signature of a signer that it knows: {}",
                              verdict_.signature),
                  fmt::format("`signatures` and `signers` in `{}` say so", policy_.file.string()));
  }

  void decide_hub() {
    const AllowEntry* entry = policy_.allowed(candidate_.repository);
    if (entry != nullptr) {
      decide_by_entry(*entry);
    } else if (is_known_signer()) {
      allow(Reason::kSigned, "the policy knows its signer");
    } else if (!has_content() && rule_of_repository() != nullptr) {
      allow(Reason::kSigned, "the policy knows its signer, whose signature is still to be seen");
    } else if (policy_.trust_hub_publishers && candidate_.trusted_publisher == true) {
      allow(Reason::kTrustedPublisher, "the Hub trusts its publisher with kernels");
    } else if (candidate_.trusted_publisher.has_value() || !policy_.trust_hub_publishers) {
      refuse(Reason::kUnknownPublisher,
             fmt::format("expected a publisher that the Hub or the policy trusts, got `{}`{}",
                         candidate_.repository, path_here()),
             allow_command(false));
    } else {
      decide_unasked();
    }
  }

  void decide_by_entry(const AllowEntry& entry) {
    if (!entry.signers.empty() && has_content() && !is_known_signer()) {
      refuse(Reason::kNoSignature, "the policy's entry demands a signature: " + verdict_.signature,
             fmt::format("`{}` holds the entry", policy_.file.string()));
    } else if (!entry.commits.empty() && has_content() && !is_commit_allowed()) {
      refuse(
          Reason::kNotThisCommit,
          fmt::format("the policy allows other commits of it alone, got `{}`", candidate_.commit),
          allow_command(true));
    } else {
      allow(Reason::kAllowed, "an entry of the policy names it");
    }
  }

  // Nobody says whether the publisher is trusted. What was allowed before is what it was: this
  // content, or this commit when it was fetched (whose content was held against the Hub's hashes).
  void decide_unasked() {
    for (const JournalEntry* entry : history_) {
      const bool is_same = entry->digest.empty() || (entry->variant == candidate_.variant &&
                                                     entry->digest == verdict_.digest);
      if (!candidate_.commit.empty() && entry->commit == candidate_.commit && is_same) {
        allow(Reason::kAllowedBefore,
              fmt::format("it was allowed at {}", format_time(entry->time_s)));
        return;
      }
    }
    if (has_last_word()) {
      return;
    }
    refuse(Reason::kNotAsked,
           fmt::format("the Hub was not asked about the publisher of `{}`, and this content was "
                       "not allowed before{}",
                       candidate_.repository, path_here()),
           fmt::format("while online load it once or `graft kernels trust ask {}`; or {}",
                       publisher_of(candidate_.repository), allow_command(false)));
  }

  // What the Hub said of the publisher when it was asked last. That is about what came from there:
  // files that somebody else could have put here are not meant.
  bool has_last_word() {
    const auto word = candidate_.last_word_counts && has_content()
                          ? last_word(journal_->entries(), candidate_.endpoint,
                                      publisher_of(candidate_.repository))
                          : std::nullopt;
    if (!word) {
      return false;
    }
    const std::string when = format_time(word->time_s);
    if (!word->trusted) {
      return refuse(
          Reason::kUnknownPublisher,
          fmt::format("the Hub, when it was asked last at {}, did not trust the publisher "
                      "of `{}`{}",
                      when, candidate_.repository, path_here()),
          allow_command(false));
    }
    if (const auto other = foreign_writer(candidate_.folder)) {
      return refuse(Reason::kForeignFiles,
                    fmt::format("the Hub cannot be asked, and {}: what lies there need not be what "
                                "`{}` published",
                                *other, candidate_.repository),
                    "load it once while online, or " + allow_command(true));
    }
    allow(Reason::kTrustedPublisher,
          fmt::format("the Hub trusted its publisher when it was asked last, at {}", when));
    return true;
  }

  std::string path_here() const {
    std::string text;
    for (const Step& step : candidate_.via) {
      text += fmt::format(", to which `{}` {}", step.repository,
                          step.is_redirect ? "redirects" : "leads as a dependency");
    }
    return text;
  }

  Verdict finished() {
    // A signature that is still to be seen vouches for nothing yet.
    const bool is_fetch = candidate_.origin == Origin::kHub && verdict_.allowed &&
                          verdict_.reason != Reason::kSigned && !candidate_.commit.empty();
    if (options_.record && (has_content() || is_fetch)) {
      record();
    }
    return verdict_;
  }

  void record() {
    Journal journal =
        journal_ ? *std::move(journal_) : Journal(options_.journal.value_or(journal_file()));
    const bool written =
        journal.add({0, candidate_.repository, candidate_.origin == Origin::kHub ? "hub" : "local",
                     candidate_.ref, candidate_.commit, candidate_.variant, verdict_.digest,
                     verdict_.signer, verdict_.allowed, to_text(verdict_.reason),
                     candidate_.origin == Origin::kHub ? candidate_.endpoint : ""});
    static std::atomic<bool> said{false};
    if (!written && !said.exchange(true)) {
      warn(
          fmt::format("[trust] `{}`: expected to write the journal there, could not; what is "
                      "loaded is not remembered",
                      journal.file().string()));
    }
  }

  const Candidate& candidate_;
  const Policy& policy_;
  const TrustOptions& options_;
  SignatureCheck check_;
  std::optional<Journal> journal_;
  std::vector<const JournalEntry*> history_;  // what was allowed of this repository
  Verdict verdict_;
};

}  // namespace

Verdict decide(const Candidate& candidate, const TrustOptions& options) {
  const Policy policy = options.policy ? *options.policy : read_policy();
  return Decision(candidate, policy, options).make();
}

Verdict require_trust(const Candidate& candidate, const TrustOptions& options) {
  Verdict verdict = decide(candidate, options);
  if (!verdict.allowed) {
    throw IntegrityError("trust.decision", to_text(verdict.reason),
                         fmt::format("`{}`: {}", candidate.repository, verdict.text),
                         verdict.way_on);
  }
  return verdict;
}

}  // namespace graft::trust

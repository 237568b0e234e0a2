// May this package's code run here? The one place that answers, from the policy, the package's
// signature, the Hub's word on its publisher, and what the journal remembers.
//
//   denied? -> came with this build? -> a folder that a person named? -> signature -> what was here
//   before -> allowed by name -> signed by a known signer -> publisher that the Hub trusts ->
//   allowed before -> publisher that the Hub trusted when it was asked last, files nobody else's
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "graft/trust/journal.h"
#include "graft/trust/policy.h"

namespace graft::trust {

enum class Origin {
  kEmbedded,  // came with this build of graft
  kLocal,     // a folder that a person named
  kHub,       // from the Hub, now or earlier
};

// A package that led to another one.
struct Step {
  std::string repository;
  bool is_redirect = false;  // else a dependency
};

struct Candidate {
  std::string repository;  // `org/name`, or the folder that was named
  Origin origin = Origin::kHub;
  std::string ref;      // branch or version that was asked for; empty: a commit, or nothing
  std::string commit;   // empty: not known
  std::string variant;  // empty: not known
  std::filesystem::path folder;  // of the variant, with metadata.json; empty: nothing is here yet
  // The Hub's word on the organisation; absent: it was not asked, or did not answer.
  std::optional<bool> trusted_publisher;
  std::string endpoint;           // of the Hub that it is, or was, resolved with
  bool last_word_counts = false;  // the Hub there cannot be asked now: what it said last counts
  std::vector<Step> via;          // packages that led here, outermost first
};

// Every reason for which a package may run or may not.
enum class Reason {
  kEmbedded,
  kLocal,
  kAllowed,           // an entry of the policy names it
  kSigned,            // by a signer that the policy knows for this repository
  kTrustedPublisher,  // by the Hub
  kAllowedBefore,     // nobody can be asked; this very content was allowed when somebody could
  kDenied,
  kUnknownPublisher,  // neither the Hub nor the policy trusts it
  kNotAsked,          // nobody can be asked, and it was not allowed before
  kForeignFiles,      // nobody can be asked, and others can write where the content lies
  kBrokenSignature,   // there is one, and it does not verify
  kWrongSigner,       // signed, but not by the signer of this repository
  kNoSignature,       // the policy demands one
  kSignatureGone,     // an earlier content was signed, this one is not
  kSignerChanged,     // an earlier content was signed by somebody else
  kNotThisCommit,     // the policy allows other commits alone
  kRolledBack,        // the branch moved back to a commit from before
  kContentChanged,    // another content under a commit that was seen before
  kCycle,             // it led to itself
  kTooFar,            // more than one redirect, or too many dependencies on the way
};

// `embedded`, `rolled-back`, …
const char* to_text(Reason reason);

struct Verdict {
  bool allowed = false;
  Reason reason = Reason::kNotAsked;
  std::string text;    // one sentence for a person
  std::string way_on;  // what to do when it is refused; empty: nothing
  // What the signature says: `signed by <who> at <when>`, `not signed`, `signature not looked at: …`.
  std::string signature;
  std::string signer;  // the workflow or address; empty: not signed, or not verified
  std::string digest;  // SHA-256 of metadata.json as 64 digits; empty without a folder
};

struct TrustOptions {
  // Absent: policy_file(), journal_file(), trusted_root_file().
  std::optional<Policy> policy;
  std::optional<std::filesystem::path> journal;
  std::optional<std::filesystem::path> trusted_root;
  bool record = true;  // write to the journal what may be fetched, and every verdict on a content
};

// Decides. Reads metadata.json and its signature; opens nothing else, asks no network.
//
// Before something is fetched (`folder` empty) the verdict is about the repository alone: it holds
// what can be said without the content, and has to be asked for again with the folder.
// Throws   as read_policy(); FormatError `trust.root.<reason>` for a trusted root that cannot be
//          read. A refusal is a verdict, not an error.
// Blocking, disk. Thread-safe.
Verdict decide(const Candidate& candidate, const TrustOptions& options = {});

// The same, with a refusal as IntegrityError `trust.decision.<reason>`.
Verdict require_trust(const Candidate& candidate, const TrustOptions& options = {});

}  // namespace graft::trust

#include "graft/kernel/trust.h"

#include <chrono>
#include <map>
#include <mutex>
#include <optional>

#include "graft/core/error.h"
#include "graft/hub/environment.h"
#include "graft/trust/publisher.h"
#include "graft/trust/rollback.h"

namespace graft::kernel {

namespace {

using std::chrono::steady_clock;

constexpr std::chrono::minutes kWordStays{10};
constexpr std::chrono::seconds kAnswersStay{60};
// A load waits this long for the Hub's word, once in a while: what is here may well be allowed before.
constexpr std::chrono::seconds kDeadline{10};
constexpr int kMaxTries = 2;
constexpr std::chrono::seconds kSilenceStays{30};

trust::Origin origin_of(const std::string& source) {
  if (source == "embedded hub") {
    return trust::Origin::kEmbedded;
  }
  return source == "LOCAL_KERNELS" || source == "path" ? trust::Origin::kLocal
                                                       : trust::Origin::kHub;
}

std::string endpoint_of(const TrustQuestion& question) {
  return question.client != nullptr ? question.client->endpoint() : hub::endpoint();
}

trust::Candidate candidate_of(const TrustQuestion& question, TrustStage stage) {
  trust::Candidate candidate;
  candidate.repository = question.repository;
  candidate.origin = origin_of(question.source);
  candidate.ref = question.ref;
  candidate.commit = question.commit;
  candidate.endpoint = endpoint_of(question);
  if (stage == TrustStage::kLoad) {
    candidate.folder = question.folder;
    candidate.variant = question.folder.filename().string();
  }
  return candidate;
}

// An entry that stands in the policy already may be narrower than the caller's word, and wins.
trust::Policy with_callers_word(const TrustPolicy& word, const std::string& repository) {
  trust::Policy policy = trust::read_policy();
  for (const std::string& name : word.repositories) {
    policy.allow.try_emplace(name);
  }
  if (word.trust_all && policy.allowed(repository) == nullptr) {
    policy.allow.try_emplace(repository);
  }
  return policy;
}

// The Hub's words of the last minutes, so that between fetch and load nothing is asked twice, and
// endpoints that did not answer a moment ago.
class Words {
 public:
  static Words& instance() {
    static Words words;
    return words;
  }
  std::optional<bool> of(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = words_.find(key);
    const bool holds =
        found != words_.end() && steady_clock::now() - found->second.second < kWordStays;
    return holds ? std::optional(found->second.first) : std::nullopt;
  }
  void note(const std::string& key, bool trusted) {
    const std::lock_guard lock(mutex_);
    words_[key] = {trusted, steady_clock::now()};
  }
  bool is_silent(const std::string& endpoint) {
    const std::lock_guard lock(mutex_);
    const auto found = silent_.find(endpoint);
    return found != silent_.end() && steady_clock::now() - found->second < kSilenceStays;
  }
  void note_silence(const std::string& endpoint) {
    const std::lock_guard lock(mutex_);
    silent_[endpoint] = steady_clock::now();
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::pair<bool, steady_clock::time_point>> words_;
  std::map<std::string, steady_clock::time_point> silent_;
};

// The Hub's word on the publisher; nothing where a load cannot have it.
std::optional<bool> ask_hub(const TrustQuestion& question, TrustStage stage) {
  const std::string organisation = trust::publisher_of(question.repository);
  const std::string endpoint = endpoint_of(question);
  const std::string key = endpoint + " " + organisation;
  if (const auto known = Words::instance().of(key)) {
    return known;
  }
  if (hub::offline() || (stage == TrustStage::kLoad && Words::instance().is_silent(endpoint))) {
    return std::nullopt;
  }
  hub::ClientOptions options;
  options.answers_stay = kAnswersStay;
  options.max_tries = kMaxTries;
  options.deadline = kDeadline;
  try {
    const bool trusted = question.client != nullptr
                             ? question.client->is_trusted_publisher(organisation)
                             : hub::Client(options).is_trusted_publisher(organisation);
    Words::instance().note(key, trusted);
    if (question.record) {
      trust::Journal journal(trust::journal_file());
      trust::remember_word(journal, endpoint, organisation, trusted);
    }
    return trusted;
  } catch (const Error&) {  // no answer, or not the Hub's
    if (stage == TrustStage::kFetch) {
      throw;
    }
    Words::instance().note_silence(endpoint);
    return std::nullopt;
  }
}

}  // namespace

trust::Verdict require_trusted(const TrustQuestion& question, TrustStage stage,
                               const TrustPolicy& policy) {
  trust::Candidate candidate = candidate_of(question, stage);
  trust::TrustOptions options;
  options.policy = with_callers_word(policy, question.repository);
  options.record = false;
  if (trust::decide(candidate, options).reason == trust::Reason::kNotAsked) {
    candidate.trusted_publisher = ask_hub(question, stage);
    candidate.last_word_counts = !candidate.trusted_publisher.has_value();
  }
  options.record = question.record;
  return trust::require_trust(candidate, options);
}

void require_no_rollback(const TrustQuestion& question, bool accept) {
  trust::require_no_rollback(
      {question.repository, endpoint_of(question), question.ref, question.commit}, accept,
      question.record);
}

}  // namespace graft::kernel

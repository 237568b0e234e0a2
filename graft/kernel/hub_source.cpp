#include "graft/kernel/hub_source.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/environment.h"

namespace graft::kernel {

namespace {

constexpr std::chrono::seconds kAnswersStay{60};
constexpr std::chrono::seconds kSilence{30};

// Endpoints that did not answer: a model of many packages waits once, not once for each.
class Silence {
 public:
  static Silence& instance() {
    static Silence silence;
    return silence;
  }
  // Why the endpoint is not asked now, or an empty text.
  std::string of(const std::string& endpoint) {
    const std::lock_guard lock(mutex_);
    const auto found = since_.find(endpoint);
    const bool lasts =
        found != since_.end() && std::chrono::steady_clock::now() - found->second.first < kSilence;
    return lasts ? found->second.second : "";
  }
  void note(const std::string& endpoint, const std::string& why) {
    const std::lock_guard lock(mutex_);
    since_[endpoint] = {std::chrono::steady_clock::now(), why};
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::pair<std::chrono::steady_clock::time_point, std::string>> since_;
};

// Where something is cached, a Hub that does not answer is not waited for as long.
hub::ClientOptions client_options(bool is_cached) {
  hub::ClientOptions options;
  options.answers_stay = kAnswersStay;
  if (is_cached) {
    options.max_tries = 2;
    options.deadline = std::chrono::seconds(10);
  }
  return options;
}

hub::KernelReference hub_reference(const LayerReference& reference) {
  return {reference.repository, reference.ref};
}

TrustQuestion question_of(const hub::KernelFetch& fetch, const ResolveRequest& request) {
  TrustQuestion question = fetch_question(fetch);
  question.record = !request.dry_run;
  return question;
}

// The parts of the options that judge variants and trust.
void add_judgement(hub::KernelSnapshotOptions& options, const ResolveRequest& request,
                   VariantJudge& judge) {
  options.choose = [&judge](const std::vector<std::string>& names) { return judge.choose(names); };
  options.accept = [&judge](const std::filesystem::path& folder) { return judge.accept(folder); };
  options.dry_run |= request.dry_run;
  options.progress = options.progress ? options.progress : request.progress;
  options.follow = [&request](const hub::KernelFetch& fetch) {
    require_no_rollback(question_of(fetch, request), request.allow_rollback);
  };
  options.permit = [&request](const hub::KernelFetch& fetch) {
    require_trusted(question_of(fetch, request), TrustStage::kFetch, request.trust);
  };
}

Resolution resolution_of(const HubAnswer& answer) {
  const auto& snapshot = answer.snapshot;
  Resolution found;
  found.folder = snapshot.build / snapshot.variant;
  found.variant = snapshot.variant;
  found.metadata = answer.metadata;
  found.source = snapshot.bytes_fetched > 0 ? "Hub" : "cache";
  found.commit = snapshot.revision.commit;
  found.ref = snapshot.revision.ref;
  found.bytes_fetched = snapshot.bytes_fetched;
  found.repository = snapshot.repo_id;
  found.is_signed = std::any_of(
      snapshot.files.begin(), snapshot.files.end(),
      [](const hub::RepoFile& file) { return file.path.ends_with("/metadata.json.sigstore"); });
  return found;
}

std::optional<HubAnswer> ask_cache(const ResolveRequest& request, Attempt& attempt) {
  VariantJudge judge(request, std::nullopt, attempt);
  hub::KernelSnapshotOptions options;
  add_judgement(options, request, judge);
  auto snapshot = hub::find_kernel(hub_reference(request.reference), options);
  if (!snapshot) {
    return std::nullopt;
  }
  return HubAnswer{std::move(*snapshot), judge.metadata()};
}

bool is_silence(const NetworkError& error) { return error.code().starts_with("hub.http."); }

}  // namespace

TrustQuestion fetch_question(const hub::KernelFetch& fetch) {
  TrustQuestion question;
  question.repository = fetch.repo_id;
  question.source = "Hub";
  question.commit = fetch.revision.commit;
  question.ref = fetch.revision.ref;
  question.client = &fetch.client;
  return question;
}

HubAnswer ask_hub(const hub::Client& client, const ResolveRequest& request, Attempt& attempt,
                  const hub::KernelSnapshotOptions& given) {
  VariantJudge judge(request, std::nullopt, attempt);
  hub::KernelSnapshotOptions options = given;
  add_judgement(options, request, judge);
  HubAnswer answer{hub::snapshot_kernel(client, hub_reference(request.reference), options), {}};
  answer.metadata = judge.metadata();
  return answer;
}

std::optional<Resolution> HubSource::resolve(const ResolveRequest& request,
                                             Attempt& attempt) const {
  if (request.reference.is_path()) {
    return std::nullopt;
  }
  const bool offline = network_ == Network::kNever || hub::offline();
  Attempt of_cache;
  std::optional<HubAnswer> cached;
  try {
    cached = ask_cache(request, of_cache);
  } catch (const Error&) {
    if (offline) {
      throw;
    }  // else the Hub has what heals it
  }
  const bool is_cached = cached && !cached->snapshot.variant.empty();
  const auto from_cache = [&]() -> std::optional<Resolution> {
    attempt.refused.insert(attempt.refused.end(), of_cache.refused.begin(), of_cache.refused.end());
    attempt.only_architecture |= of_cache.only_architecture;
    if (is_cached) {
      return resolution_of(*cached);
    }
    attempt.looked.push_back(fmt::format("cache: `{}`{}", hub::kernels_cache_folder().string(),
                                         hub::offline() ? ", and HF_HUB_OFFLINE is set" : ""));
    return std::nullopt;
  };
  if (offline) {
    return from_cache();
  }
  const hub::Client client(client_options(is_cached));
  if (const auto why = Silence::instance().of(client.endpoint()); !why.empty()) {
    if (is_cached) {
      return from_cache();
    }
    throw NetworkError("hub.client", "silent",
                       fmt::format("`{}`: expected an answer of {}, got none a moment ago: {}",
                                   request.reference.repository, client.endpoint(), why));
  }
  try {
    const HubAnswer answer = ask_hub(client, request, attempt);
    if (answer.snapshot.from_cache) {
      Silence::instance().note(client.endpoint(), "the cache answered instead");
    }
    if (answer.snapshot.variant.empty()) {
      attempt.looked.push_back(fmt::format("the Hub: `{}` has {} build variants, none that fits",
                                           answer.snapshot.repo_id,
                                           answer.snapshot.variants.size()));
      return std::nullopt;
    }
    return resolution_of(answer);
  } catch (const NotFound& error) {
    attempt.looked.push_back(fmt::format("the Hub: {}", error.what()));
    return std::nullopt;
  } catch (const NetworkError& error) {
    if (is_silence(error)) {
      Silence::instance().note(client.endpoint(), error.what());
    }
    throw;
  }
}

}  // namespace graft::kernel

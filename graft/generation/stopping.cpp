#include "graft/generation/stopping.h"

#include <algorithm>

namespace graft::generation {

StopStrings::StopStrings(const std::vector<std::string>& strings) : strings_(&strings) {
  for (const auto& text : strings) {
    longest_ = std::max(longest_, text.size());
  }
}

bool StopStrings::push(std::string_view piece) {
  if (piece.empty() || longest_ == 0) {
    return false;
  }
  const size_t old = tail_.size();
  tail_ += piece;
  const bool hit = std::any_of(strings_->begin(), strings_->end(), [&](const std::string& text) {
    // A match must end inside the piece, so it cannot begin further back than this.
    const size_t from = old - std::min(old, text.size() - 1);
    return tail_.find(text, from) != std::string::npos;
  });
  tail_.erase(0, tail_.size() - std::min(tail_.size(), longest_ - 1));
  return hit;
}

StoppingRules::StoppingRules(std::vector<int64_t> eos_token_ids, int64_t max_new_tokens,
                             const GenerationConfig& config, const GenerateHooks& hooks)
    : eos_token_ids_(std::move(eos_token_ids)),
      max_new_tokens_(max_new_tokens),
      config_(&config),
      hooks_(&hooks),
      start_(std::chrono::steady_clock::now()) {}

bool StoppingRules::is_eos(int64_t token) const {
  return std::find(eos_token_ids_.begin(), eos_token_ids_.end(), token) != eos_token_ids_.end();
}

FinishReason StoppingRules::reason(int64_t token, int64_t num_new_tokens,
                                   bool stop_string_hit) const {
  return is_eos(token)                       ? FinishReason::kEos
         : stop_string_hit                   ? FinishReason::kStopString
         : num_new_tokens >= max_new_tokens_ ? FinishReason::kLength
                                             : interruption();
}

FinishReason StoppingRules::interruption() const {
  if (hooks_->cancel != nullptr && hooks_->cancel->load(std::memory_order_relaxed)) {
    return FinishReason::kCancelled;
  }
  if (config_->max_time_seconds) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    return passed.count() > *config_->max_time_seconds ? FinishReason::kTime : FinishReason::kNone;
  }
  return FinishReason::kNone;
}

StoppingRules::StopSearch StoppingRules::make_stop_search(const std::vector<int64_t>& ids) const {
  StopSearch search{StopStrings(config_->stop_strings), hooks_->make_stop_decoder
                                                            ? hooks_->make_stop_decoder()
                                                            : hooks_->make_decoder()};
  // One token gives at least one byte, save for those that a decoder skips or holds back.
  constexpr size_t kSpare = 8;
  for (size_t i = ids.size() - std::min(ids.size(), search.strings.longest() + kSpare);
       i < ids.size(); ++i) {
    search.push(ids[i]);
  }
  return search;
}

}  // namespace graft::generation

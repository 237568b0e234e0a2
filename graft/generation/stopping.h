// When a row ends. Internal to the room, except for StopStrings.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graft/generation/generation_config.h"
#include "graft/generation/streamer.h"

namespace graft::generation {

// Finds stop strings in text that comes in pieces: push() says whether one ends inside the newest
// piece, wherever it began. Transformers' rule: what follows in the same token does not matter.
class StopStrings {
 public:
  explicit StopStrings(const std::vector<std::string>& strings);

  bool push(std::string_view piece);
  // Bytes of the longest string; no match needs to look further back.
  size_t longest() const { return longest_; }

 private:
  const std::vector<std::string>* strings_;
  size_t longest_ = 0;
  std::string tail_;  // the end of the text so far, one byte less than the longest string
};

// The rules that hold for every row of one call.
class StoppingRules {
 public:
  StoppingRules(std::vector<int64_t> eos_token_ids, int64_t max_new_tokens,
                const GenerationConfig& config, const GenerateHooks& hooks);

  bool is_eos(int64_t token) const;
  // Why a row with `num_new_tokens` ends after `token`; kNone when it goes on. Cancelling and time
  // count last: a row that ended by itself says so.
  FinishReason reason(int64_t token, int64_t num_new_tokens, bool stop_string_hit) const;
  // kCancelled or kTime when the whole call has to end, else kNone.
  FinishReason interruption() const;

  int64_t max_new_tokens() const { return max_new_tokens_; }
  bool has_stop_strings() const { return !config_->stop_strings.empty(); }

  // A matcher and decoder that have read the end of a row's prompt, where a stop string may begin.
  struct StopSearch {
    StopStrings strings;
    TextDecoder decoder;
    bool push(int64_t token) { return strings.push(decoder.push(token)); }
  };
  StopSearch make_stop_search(const std::vector<int64_t>& ids) const;

 private:
  std::vector<int64_t> eos_token_ids_;
  int64_t max_new_tokens_;
  const GenerationConfig* config_;
  const GenerateHooks* hooks_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace graft::generation

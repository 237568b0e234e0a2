// What generate() tells its caller while it runs, and how the caller stops it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace graft::text {
class Tokenizer;
}

namespace graft::generation {

enum class FinishReason { kNone, kLength, kEos, kStopString, kCancelled, kTime };

// `none`, `length`, `eos`, `stop_string`, `cancelled`, `time`.
std::string_view name(FinishReason reason);

// One new token of one row, in the order of generation.
struct TokenEvent {
  int64_t row = 0;
  int64_t token_id = 0;
  double logprob = 0.0;  // under the distribution that the token was chosen from
  std::string text;      // whole characters that are certain now; needs `make_decoder` below
  FinishReason finish = FinishReason::kNone;
};

// Turns one row's ids into text, piece by piece; text::DecodeStream behind it, as a rule.
struct TextDecoder {
  // Whole characters that the id completes; bytes of an unfinished one wait for the next call.
  std::function<std::string(int64_t token_id)> push;
  // What was still waiting; may be absent.
  std::function<std::string()> finish;
};

struct GenerateHooks {
  // Called for every new token, in order; not with beams. An exception that it throws ends the
  // generation and reaches generate()'s caller.
  std::function<void(const TokenEvent&)> on_token;
  // Makes a fresh decoder for a row; stop strings and TokenEvent::text need it.
  std::function<TextDecoder()> make_decoder;
  // The same with special tokens spelled out, for stop strings that name one; absent: make_decoder.
  std::function<TextDecoder()> make_stop_decoder;
  // Set from another thread or a signal handler: generation ends after the token under way.
  const std::atomic<bool>* cancel = nullptr;
};

// Hooks whose decoders read `tokenizer`, which must outlive them; the caller adds on_token and
// cancel.
GenerateHooks text_hooks(const text::Tokenizer& tokenizer);

}  // namespace graft::generation

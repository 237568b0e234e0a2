// Text token by token: greedy search, sampling and beams over any CausalLM.
//
//   auto output = generation::generate(*model, {tokenizer.encode("Hello")}, {.max_new_tokens =
//   32});
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "graft/generation/generation_config.h"
#include "graft/models/causal_lm.h"

namespace graft::generation {

enum class FinishReason { kNone, kLength, kEos, kStopString, kCancelled, kTime };

std::string_view name(FinishReason reason);

// One new token of one row, in the order of generation.
struct TokenEvent {
  int64_t row = 0;
  int64_t token_id = 0;
  double logprob = 0.0;  // under the model's distribution after processing
  std::string text;      // whole characters that are certain now; needs `decode` below
  FinishReason finish = FinishReason::kNone;
};

// Turns one row's ids into text, piece by piece; text::DecodeStream behind it, as a rule.
struct TextDecoder {
  std::function<std::string(int64_t token_id)> push;
  std::function<std::string()> finish;
};

struct GenerateHooks {
  // Called for every new token; not with beams.
  std::function<void(const TokenEvent&)> on_token;
  // Makes a fresh decoder for a row; stop strings and TokenEvent::text need it.
  std::function<TextDecoder()> make_decoder;
  // Set from another thread or a signal handler: generation ends after the token under way.
  const std::atomic<bool>* cancel = nullptr;
};

struct GenerateOutput {
  // New ids per row, without padding; an end token is included. With num_return_sequences, rows of
  // one prompt stand together, best first.
  std::vector<std::vector<int64_t>> sequences;
  std::vector<FinishReason> finish_reasons;
  std::vector<double> beam_scores;  // beams only
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;  // new tokens after each row's first
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
};

// Continues each prompt. Prompts may differ in length: they are padded on the left, with position
// ids and mask to match; rows without padding cost nothing extra.
//
// prompts  token ids per row; an empty one becomes the model's bos token
// Throws   InvalidArgument `generation.*` before any work: empty-prompt, vocabulary (an id
// outside), context
//          (prompt and new tokens pass max_position_embeddings), stop-strings (no decoder),
//          streaming-beams, and what GenerationConfig::validate() throws; DeviceError
//          `generation.nan-logits` when the model gives NaN.
// Runs in inference mode; one host synchronisation per step. Not thread-safe for one model.
// Source   transformers' generate(), greedy search, sampling and beam search.
GenerateOutput generate(models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
                        const GenerationConfig& config, const GenerateHooks& hooks = {});

}  // namespace graft::generation

// Changes to the logits of the next token, as transformers computes them. The functions take and
// give float32 [B, V] on the logits' own device and leave their argument as it is.
// B rows, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>

#include "graft/generation/generation_config.h"

namespace graft::generation {

// Ids of each row so far: prompt (without padding) and new tokens.
using Sequences = std::vector<std::vector<int64_t>>;

// Seen tokens: negative logits times `penalty`, positive ones divided by it.
//
// seen  [B, V] bool  tokens of prompt and new text
at::Tensor repetition_penalty(const at::Tensor& logits, const at::Tensor& seen, double penalty);
// Tokens that would repeat an n-gram of the row get -inf.
at::Tensor no_repeat_ngram(const at::Tensor& logits, const Sequences& sequences,
                           int64_t ngram_size);
// The given tokens, [N] int64, get -inf.
at::Tensor suppress(const at::Tensor& logits, const at::Tensor& token_ids);

at::Tensor temperature(const at::Tensor& logits, double value);
// Everything below the k-th largest logit gets -inf; ties with it stay. `keep`, here and below: the
// fewest tokens that stay.
at::Tensor top_k(const at::Tensor& logits, int64_t k, int64_t keep = 1);
// The smallest set of tokens whose probabilities reach p stays.
at::Tensor top_p(const at::Tensor& logits, double p, int64_t keep = 1);
// Tokens with less than min_p times the largest probability get -inf.
at::Tensor min_p(const at::Tensor& logits, double value, int64_t keep = 1);
// Locally typical sampling: tokens whose surprise is near the entropy stay, up to mass `p`.
// Source   Meister et al. 2022, transformers' TypicalLogitsWarper.
at::Tensor typical_p(const at::Tensor& logits, double p, int64_t keep = 1);

// Temperature, top-k, top-p, min-p, typical-p, in transformers' order.
at::Tensor warp(const at::Tensor& logits, const GenerationConfig& config, int64_t keep = 1);

// Penalties and bans (greedy, sampling and beams alike), in transformers' order, with what they
// remember of each row.
class LogitsProcessors {
 public:
  // eos_token_ids  the tokens that the first min_new_tokens steps may not give
  // prompts        one per row
  LogitsProcessors(const GenerationConfig& config, std::vector<int64_t> eos_token_ids,
                   int64_t min_new_tokens, const Sequences& prompts, int64_t vocab_size,
                   at::Device device);

  // Whether the host must know all ids before process() runs.
  bool needs_sequences() const { return ngram_size_ > 0; }

  // Logits of the token after `num_new_tokens` new ones; `sequences` may be empty unless
  // needs_sequences().
  at::Tensor process(const at::Tensor& logits, const Sequences& sequences,
                     int64_t num_new_tokens) const;
  // Remembers one new token per row, [B] int64 on the logits' device.
  void append(const at::Tensor& tokens);
  // Keeps row indices[b] as row b.
  void reorder(const at::Tensor& indices);

 private:
  double penalty_;
  int64_t ngram_size_;
  int64_t min_new_tokens_;
  at::Tensor seen_;  // [B, V] bool; undefined without a penalty
  at::Tensor eos_;   // [N] int64; undefined without min_new_tokens
};

}  // namespace graft::generation

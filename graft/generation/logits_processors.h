// Changes to the logits of the next token, as transformers computes them. All take and give float32
// [B, V] on the logits' own device. B rows, V vocabulary.
#pragma once

#include <vector>

#include <ATen/ATen.h>

#include "graft/generation/generation_config.h"

namespace graft::generation {

// Ids of each row so far: prompt (without padding) and new tokens.
using Sequences = std::vector<std::vector<int64_t>>;

// Seen tokens: negative logits times `penalty`, positive ones divided by it.
at::Tensor repetition_penalty(const at::Tensor& logits, const Sequences& sequences, double penalty);
// Tokens that would repeat an n-gram of the row get -inf.
at::Tensor no_repeat_ngram(const at::Tensor& logits, const Sequences& sequences,
                           int64_t ngram_size);
// The given tokens get -inf.
at::Tensor suppress(const at::Tensor& logits, const std::vector<int64_t>& token_ids);
at::Tensor temperature(const at::Tensor& logits, double value);
// Everything below the k-th largest logit gets -inf; ties with it stay.
at::Tensor top_k(const at::Tensor& logits, int64_t k);
// The smallest set of tokens whose probabilities reach p stays, at least one token.
at::Tensor top_p(const at::Tensor& logits, double p);
// Tokens with less than min_p times the largest probability get -inf.
at::Tensor min_p(const at::Tensor& logits, double value);
// Locally typical sampling: tokens whose surprise is near the entropy stay, up to mass `p`.
// Source   Meister et al. 2022.
at::Tensor typical_p(const at::Tensor& logits, double p);

// Penalties and bans (greedy, sampling and beams alike), in transformers' order.
at::Tensor process(const at::Tensor& logits, const Sequences& sequences, int64_t num_new_tokens,
                   const std::vector<int64_t>& eos_token_ids, const GenerationConfig& config);
// Temperature, top-k, top-p, min-p, typical-p, in transformers' order.
at::Tensor warp(const at::Tensor& logits, const GenerationConfig& config);

}  // namespace graft::generation

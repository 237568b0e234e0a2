// Text token by token: greedy search, sampling and beams over any CausalLM.
//
//   auto output = generation::generate(*model, {tokenizer.encode("Hello")}, {.max_new_tokens =
//   32});
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graft/generation/generation_config.h"
#include "graft/generation/streamer.h"
#include "graft/models/causal_lm.h"

namespace graft::generation {

struct GenerateOutput {
  // New ids per row, without padding; an end token is included. With num_return_sequences, rows of
  // one prompt stand together; of beams the best comes first.
  std::vector<std::vector<int64_t>> sequences;
  std::vector<FinishReason> finish_reasons;
  std::vector<double> beam_scores;  // beams only: sum of log-probabilities / length^length_penalty
  // With output_scores: per step float32 [B, V] on the model's device, what the token was chosen
  // from; of beams log-probabilities of the running beams. As transformers' `scores`.
  std::vector<at::Tensor> scores;
  bool used_graph = false;      // decode steps were replayed from one captured graph
  std::string graph_refusal;    // why not; empty where used_graph
  int64_t prefill_tokens = 0;
  int64_t decode_tokens = 0;  // new tokens after each row's first
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
};

// Why decode steps of the model cannot be captured into a graph of its device; empty: with a static
// cache they are.
std::string graph_refusal(models::CausalLM& model);

// Continues each prompt. Prompts may differ in length: they are padded on the left, with position
// ids and mask to match; a batch without padding passes neither. Tokens of padding count for no
// penalty.
//
// prompts  token ids per row; an empty one becomes the bos token
// returns  the rows written so far, also when cancelled
// Throws   InvalidArgument before any work: `generation.empty-prompt`, `.vocabulary` (an id
//          outside), `.context` (prompt and new tokens pass max_position_embeddings),
//          `.stop-strings` (no decoder), `.streaming-beams`, and what GenerationConfig::validate()
//          throws; DeviceError `generation.nan-logits` when the model gives NaN or infinity.
// Devices  cpu, cuda   One host synchronisation per step; on CUDA the next step is enqueued before
//          it where no option needs the ids first. Inference mode. One call at a time per model.
// Graphs   With use_static_cache on CUDA the second decode step is captured into a CUDA graph, which every
//          further one replays: the ids are those of the steps without it. What stands in the way is
//          told in graph_refusal. The graph ends with the call, so nothing that happens to the model
//          between calls can make it stale.
// Source   transformers' generate(): greedy search, sampling, beam search, beam sampling.
GenerateOutput generate(models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
                        const GenerationConfig& config, const GenerateHooks& hooks = {});

}  // namespace graft::generation

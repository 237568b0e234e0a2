// Steps that sampling and beam search share. Internal to the room.
// B rows, S new tokens, T all tokens, V vocabulary.
#pragma once

#include <memory>
#include <vector>

#include "graft/generation/decode_graph.h"
#include "graft/generation/generate.h"
#include "graft/generation/stopping.h"

namespace graft::generation {

// What generate() settles before any work.
struct Plan {
  std::vector<std::vector<int64_t>> prompts;
  std::vector<int64_t> eos_token_ids;
  int64_t width = 0;  // of the longest prompt
  int64_t max_new_tokens = 0;
  int64_t min_new_tokens = 0;
};

// Throws   InvalidArgument as generate() promises.
Plan make_plan(const models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
               const GenerationConfig& config, const GenerateHooks& hooks);

// A batch on its way through the model: ids, padding, cache.
class Decoding {
 public:
  // rows_per_prompt copies of every prompt stand together.
  Decoding(models::CausalLM& model, const Plan& plan, int64_t rows_per_prompt,
           const GenerationConfig& config);

  // Logits of the prompts' last positions, float32 [B, V].
  at::Tensor prefill();
  // Feeds one token per row, [B] int64 on the model's device.
  at::Tensor step(const at::Tensor& tokens);
  // Keeps row indices[b] as row b: cache and padding.
  void reorder(const at::Tensor& indices);

  // Whether steps are replayed from a graph, and else why not.
  void report_graph(GenerateOutput& output) const;

  int64_t num_rows() const { return num_rows_; }
  int64_t prompt_tokens() const { return prompt_tokens_; }

 private:
  void place_prompts(const Plan& plan, int64_t rows_per_prompt, int64_t pad);
  std::unique_ptr<nn::KvCache> make_cache() const;
  // All ids are needed: there is no cache, or it may yet have to be filled anew.
  bool keeps_ids() const { return cache_ == nullptr || length_ <= switch_length_; }
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& position_ids);
  // float32 [B, V] of the last position.
  at::Tensor last_logits(const at::Tensor& logits, bool copy) const;
  at::Tensor graph_step(const at::Tensor& tokens);

  models::CausalLM& model_;
  int64_t num_rows_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t length_ = 0;         // tokens per row, padding included
  int64_t switch_length_ = 0;  // CausalLMInfo::rope_switch_length
  int64_t static_length_ = 0;  // places of a static cache; 0: dynamic
  at::Tensor ids_;             // [B, S]; where keeps_ids(), [B, T]
  at::Tensor mask_;            // [B, width + max_new_tokens], 0 on padding; undefined without any
  at::Tensor next_positions_;  // [B, 1]; undefined without padding
  std::unique_ptr<nn::KvCache> cache_;
  std::string graph_refusal_;           // empty: steps are captured
  std::unique_ptr<DecodeGraph> graph_;  // from the first step on
};

GenerateOutput beam_search(models::CausalLM& model, const Plan& plan,
                           const GenerationConfig& config, const GenerateHooks& hooks);

}  // namespace graft::generation

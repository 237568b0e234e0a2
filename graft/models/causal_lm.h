// What every decoder-only language model offers, whichever family it is.
// Shape letters: B batch, S new tokens, T all tokens (past and new), V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include "graft/nn/attention_kernel.h"
#include "graft/nn/kv_cache.h"

namespace graft::models {

// Arguments of one forward pass. Undefined tensors and null pointers mean "absent".
struct ForwardInput {
  at::Tensor input_ids;          // [B, S] int64
  at::Tensor attention_mask;     // [B, T] int64 or bool, 1 = attend; absent: all ones
  at::Tensor position_ids;       // [B, S] int64; absent: cache length + 0..S-1
  nn::KvCache* cache = nullptr;  // absent: no cache
  int64_t logits_to_keep = 0;    // last n positions; 0: all
};

// Facts that generate() and the program need of any model.
struct CausalLMInfo {
  std::string model_type;    // `llama`, `qwen2`, …
  std::string folder;        // where the checkpoint lies, with generation_config.json and tokenizer
  std::string weights_file;  // the .gguf file, where the weights come from one
  std::string config_json;   // as transformers would write it, also of a .gguf file
  int64_t vocab_size = 0;
  int64_t num_layers = 0;
  int64_t max_position_embeddings = 0;  // 0: no limit (dynamic rope stretches with the text)
  // Once a text has more tokens than this, keys cached before are wrong and have to be computed
  // anew (phi3's longrope changes its factors there); 0: never.
  int64_t rope_switch_length = 0;
  int64_t num_parameters = 0;
  std::vector<int64_t> eos_token_ids;
  int64_t bos_token_id = -1;
  int64_t pad_token_id = -1;
};

class CausalLM : public torch::nn::Module {
 public:
  ~CausalLM() override = default;

  // Returns logits [B, S or logits_to_keep, V] in the model's dtype.
  virtual at::Tensor forward(const ForwardInput& input) = 0;

  // Mean cross-entropy of the next tokens. Where a kernel serves `ForCausalLMLoss` the logits of all of them
  // are never kept.
  //
  // input      as for forward(); no cache, logits_to_keep 0
  // labels     [B, S] int64, as a rule input_ids themselves: the shift by one place happens here; -100 where
  //            a token does not count
  // num_items  what the sum is divided by (gradients gathered over several calls); 0: the tokens that count
  // Returns a float32 scalar, differentiable where the model is trainable; NaN where no token counts.
  // Throws   InvalidArgument `models.loss.<reason>`
  // Source   transformers' ForCausalLMLoss
  virtual at::Tensor loss(const ForwardInput& input, const at::Tensor& labels,
                          int64_t num_items = 0);

  // A cache that grows, or with max_length > 0 one allocated for max_length tokens at once.
  virtual std::unique_ptr<nn::KvCache> make_cache(int64_t batch_size,
                                                  int64_t max_length = 0) const = 0;

  // Why the places of a step cannot be counted on the device, which a captured step needs; empty: they
  // can.
  virtual std::string device_steps_refusal() const {
    return "the model does not count its tokens on the device";
  }
  // Lets a static cache that holds its prompt count further tokens on the device. forward() then takes
  // one token a row, without attention_mask and position_ids, and nothing in it depends on the length:
  // it may be captured. After a replay the caller calls cache.advance(1).
  //
  // attention_mask  [B, max_length] int64 or bool, 0 at padding; undefined: no padding
  // Throws   InvalidArgument `models.device_steps.<reason>` where device_steps_refusal() has one, or the
  //          cache is none of this model's static ones.
  virtual void count_on_device(nn::KvCache& cache, const at::Tensor& attention_mask) const;

  // Changes how the model attends from the next forward pass on, as LoadOptions::attn_implementation
  // does at loading. On an error nothing changes.
  // Throws   InvalidArgument `models.attn_implementation.unknown`; IncompatibleError
  //          `models.attn_implementation.refused` where the kernel cannot do what the model asks; what
  //          loading a kernel throws (docs/attention.md).
  virtual void set_attn_implementation(const std::string& name) = 0;
  // The name that was asked for last.
  virtual const std::string& attn_implementation() const = 0;

  // Who could attend in a pass of `num_queries` new tokens, best first, each with the reason where it
  // does not apply. Empty for a model that cannot say.
  virtual std::vector<nn::AttentionCandidate> attention_candidates(int64_t num_queries) const {
    (void)num_queries;
    return {};
  }

  virtual const CausalLMInfo& info() const = 0;
  virtual at::Device device() const = 0;
  virtual at::ScalarType dtype() const = 0;
};

}  // namespace graft::models

// Chooses the next token of every row: the best one, or one drawn at random. B rows, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Event.h>

#include "graft/generation/generation_config.h"
#include "graft/generation/logits_processors.h"

namespace graft::generation {

// The tokens of one step, on their way from the device to the host.
struct Choice {
  at::Tensor tokens;    // [B] int64 on the model's device: what the model is fed next
  at::Tensor ids;       // [B] int64 on the host, filled once wait() is back
  at::Tensor largest;   // [B] float32 on the host: each row's largest logit, NaN where one is NaN
  at::Tensor logprobs;  // [B] float32 on the host; undefined unless asked for
  at::Tensor scores;    // [B, V] float32, processed and warped; undefined unless asked for
  std::vector<c10::Event> copied;  // none on the CPU

  // Blocks until ids, largest and logprobs are there.
  // Throws   DeviceError `generation.nan-logits`.
  void wait();
};

class Sampler {
 public:
  struct Wish {
    bool logprobs = false;
    bool scores = false;
  };

  // Each row draws from a generator of its own, seeded with seed + row: what one row draws does not
  // depend on the rows beside it. The same seed gives the same tokens on the same kind of device.
  Sampler(const GenerationConfig& config, int64_t num_rows, at::Device device, Wish wish);

  // Enqueues the choice from raw logits, float32 [B, V]; blocks on the CPU alone.
  Choice choose(const at::Tensor& logits, const LogitsProcessors& processors,
                const Sequences& sequences, int64_t num_new_tokens);

 private:
  void choose_best(const at::Tensor& scores, Choice& choice) const;
  void draw(const at::Tensor& scores, Choice& choice);
  void draw_on_host(const at::Tensor& scores, Choice& choice);
  void send_to_host(Choice& choice) const;

  const GenerationConfig& config_;
  at::Device device_;
  Wish wish_;
  std::vector<at::Generator> generators_;  // empty for greedy search
};

// Index and value of the largest of `size` numbers: the first one on ties. A NaN is larger than
// everything, as for at::max.
struct Largest {
  int64_t index = 0;
  float value = 0.0F;
};
Largest find_largest(const float* values, int64_t size);

// One token and its score.
struct Candidate {
  int64_t id = 0;
  float score = 0.0F;
};

// The tokens of one row that warp() would leave, in the order of their ids, without sorting the
// vocabulary; needs top_k > 0.
std::vector<Candidate> warped_candidates(const float* scores, int64_t vocab_size,
                                         const GenerationConfig& config);

// Draws in proportion to exp(score); u in [0, 1). Returns the index of the candidate.
size_t draw_candidate(const std::vector<Candidate>& candidates, double u, double* logprob);

}  // namespace graft::generation

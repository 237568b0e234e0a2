// Beam search as transformers does it since its vectorised rewrite: running beams and finished ones
// are kept apart, and each step looks at enough continuations to keep num_beams of them alive.
#include <algorithm>
#include <chrono>
#include <cmath>

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/generation/decoding.h"
#include "graft/generation/logits_processors.h"
#include "graft/generation/sampler.h"

namespace graft::generation {

namespace {

using Clock = std::chrono::steady_clock;

constexpr float kImpossible = -1e9F;  // transformers' stand-in for minus infinity

struct Beam {
  std::vector<int64_t> ids;  // new tokens alone
  float score = kImpossible;
  bool finished = false;
  FinishReason reason = FinishReason::kNone;
  int64_t parent = 0;  // row of the batch that it continues
};

struct Group {  // the beams of one prompt
  std::vector<Beam> running;
  std::vector<Beam> finished;
  bool may_improve = true;
  bool all_candidates_hit = false;
  at::Generator generator;  // beam sampling only
};

// The best continuations of one step, best first. P prompts, K candidates.
struct Continuations {
  at::Tensor scores;   // [P, K] float32 on the host
  at::Tensor indices;  // [P, K] int64 on the host: beam * vocabulary + token
};

// The order that torch.topk gives to equal scores decides which beam lives: use it for every
// choice.
std::vector<Beam> best_beams(const std::vector<Beam>& beams, int64_t count) {
  std::vector<float> scores;
  for (const auto& beam : beams) {
    scores.push_back(beam.score);
  }
  const at::Tensor order = std::get<1>(at::tensor(scores, at::kFloat).topk(count));
  std::vector<Beam> best;
  for (int64_t i = 0; i < count; ++i) {
    best.push_back(beams[static_cast<size_t>(order.const_data_ptr<int64_t>()[i])]);
  }
  return best;
}

Sequences repeat(const std::vector<std::vector<int64_t>>& prompts, int64_t times) {
  Sequences result;
  for (const auto& prompt : prompts) {
    result.insert(result.end(), static_cast<size_t>(times), prompt);
  }
  return result;
}

// The largest logit of a row is NaN where any logit is.
void check_largest(const at::Tensor& largest) {
  if (!at::isfinite(largest).all().item<bool>()) {
    throw DeviceError("generation", "nan-logits", "logits: expected numbers, got NaN or infinity",
                      "try float32; if kernels are on, compare with the reference layers");
  }
}

class BeamSearch {
 public:
  BeamSearch(models::CausalLM& model, const Plan& plan, const GenerationConfig& config,
             const GenerateHooks& hooks)
      : plan_(plan),
        config_(config),
        num_beams_(config.num_beams),
        num_candidates_(keep() * num_beams_),
        rules_(plan.eos_token_ids, plan.max_new_tokens, config, hooks),
        decoding_(model, plan, config.num_beams, config),
        processors_(config, plan.eos_token_ids, plan.min_new_tokens,
                    repeat(plan.prompts, num_beams_), model.info().vocab_size, model.device()) {
    for (size_t i = 0; i < plan.prompts.size(); ++i) {
      Group group;
      group.running.assign(static_cast<size_t>(num_beams_), Beam{});
      group.finished.assign(static_cast<size_t>(num_beams_), Beam{});
      // All beams are equal at first: only one may be continued.
      group.running.front().score = 0.0F;
      group.generator = at::detail::createCPUGenerator(config.seed + i);
      groups_.push_back(std::move(group));
    }
  }

  GenerateOutput run() {
    auto start = Clock::now();
    output_.prefill_tokens = decoding_.prompt_tokens();
    at::Tensor logits = decoding_.prefill();
    while (true) {
      advance(logits);
      if (length_ == 1) {
        output_.prefill_seconds = std::chrono::duration<double>(Clock::now() - start).count();
        start = Clock::now();
      }
      if (!goes_on()) {
        break;
      }
      logits = feed(logits.device());
    }
    output_.decode_seconds = std::chrono::duration<double>(Clock::now() - start).count();
    decoding_.report_graph(output_);
    collect();
    return std::move(output_);
  }

 private:
  // Continuations per beam: if every end token is among the best, one that goes on is left.
  int64_t keep() const {
    return std::max<int64_t>(2, 1 + static_cast<int64_t>(plan_.eos_token_ids.size()));
  }

  // One step: from logits [P * beams, V] to new running and finished beams.
  void advance(const at::Tensor& logits) {
    const Continuations best = best_continuations(logits);
    const FinishReason interruption = rules_.interruption();
    ++length_;
    for (size_t i = 0; i < groups_.size(); ++i) {
      advance_group(i, best, logits.size(-1), interruption);
    }
  }

  Continuations best_continuations(const at::Tensor& logits) {
    const at::Tensor largest = logits.amax(-1).to(at::kCPU, /*non_blocking=*/!config_.do_sample);
    if (config_.do_sample) {
      check_largest(largest);  // a draw needs probabilities
    }
    at::Tensor log_probs = processors_.process(logits.log_softmax(-1), sequences(), length_);
    if (config_.do_sample) {
      log_probs = warp(log_probs, config_, plan_.eos_token_ids.empty() ? 2 : keep());
    }
    if (config_.output_scores) {
      output_.scores.push_back(log_probs);
    }
    const auto num_prompts = static_cast<int64_t>(groups_.size());
    const at::Tensor total =
        (log_probs + running_scores().to(log_probs.device(), /*non_blocking=*/true))
            .reshape({num_prompts, -1});
    Continuations best;
    if (config_.do_sample) {
      best = drawn_continuations(total);
    } else {
      std::tie(best.scores, best.indices) = total.topk(num_candidates_);
    }
    // The last copy waits for the stream, and so for those before it.
    best.scores = best.scores.to(at::kCPU, /*non_blocking=*/true);
    best.indices = best.indices.to(at::kCPU);
    check_largest(largest);
    return best;
  }

  // Without replacement, each prompt from its own generator.
  Continuations drawn_continuations(const at::Tensor& total) {
    const at::Tensor probabilities = total.softmax(-1).to(at::kCPU);
    std::vector<at::Tensor> drawn;
    for (size_t i = 0; i < groups_.size(); ++i) {
      drawn.push_back(at::multinomial(probabilities[static_cast<int64_t>(i)], num_candidates_,
                                      /*replacement=*/false, groups_[i].generator));
    }
    const at::Tensor indices = at::stack(drawn).to(total.device());
    return {total.gather(1, indices), indices};
  }

  void advance_group(size_t index, const Continuations& best, int64_t vocab_size,
                     FinishReason interruption) {
    Group& group = groups_[index];
    const int64_t offset = static_cast<int64_t>(index) * num_candidates_;
    const float* scores = best.scores.const_data_ptr<float>() + offset;
    const int64_t* indices = best.indices.const_data_ptr<int64_t>() + offset;
    std::vector<Beam> candidates;
    for (int64_t k = 0; k < num_candidates_; ++k) {
      const int64_t from = indices[k] / vocab_size;
      Beam beam = group.running[static_cast<size_t>(from)];
      beam.ids.push_back(indices[k] % vocab_size);
      beam.score = scores[k];
      beam.parent = static_cast<int64_t>(index) * num_beams_ + from;
      beam.reason = finish_reason(index, beam, interruption);
      candidates.push_back(std::move(beam));
    }
    group.all_candidates_hit = std::all_of(candidates.begin(), candidates.end(), [](const Beam& b) {
      return b.reason != FinishReason::kNone;
    });
    update_finished(group, candidates);
    update_running(group, std::move(candidates));
    group.may_improve = group.may_improve && can_improve(group);
  }

  FinishReason finish_reason(size_t index, const Beam& beam, FinishReason interruption) const {
    const FinishReason reason =
        rules_.reason(beam.ids.back(), length_, ends_with_stop_string(index, beam));
    // Every candidate of a step ends or none does, however long the step takes.
    return reason == FinishReason::kCancelled || reason == FinishReason::kTime ||
                   reason == FinishReason::kNone
               ? interruption
               : reason;
  }

  bool ends_with_stop_string(size_t index, const Beam& beam) const {
    if (!rules_.has_stop_strings()) {
      return false;
    }
    std::vector<int64_t> before = plan_.prompts[index];
    before.insert(before.end(), beam.ids.begin(), beam.ids.end() - 1);
    return rules_.make_stop_search(before).push(beam.ids.back());
  }

  void update_running(Group& group, std::vector<Beam> candidates) const {
    for (auto& beam : candidates) {
      beam.score += beam.reason != FinishReason::kNone ? kImpossible : 0.0F;
    }
    group.running = best_beams(candidates, num_beams_);
  }

  // Only the best num_beams candidates may finish.
  void update_finished(Group& group, const std::vector<Beam>& candidates) const {
    const bool full = config_.early_stopping == EarlyStopping::kTrue &&
                      std::all_of(group.finished.begin(), group.finished.end(),
                                  [](const Beam& b) { return b.finished; });
    std::vector<Beam> merged = group.finished;
    for (size_t k = 0; k < candidates.size(); ++k) {
      Beam beam = candidates[k];
      beam.finished = beam.reason != FinishReason::kNone && k < static_cast<size_t>(num_beams_);
      beam.score /= length_factor(length_);
      beam.score += full ? kImpossible : 0.0F;
      beam.score += group.may_improve ? 0.0F : kImpossible;
      beam.score += beam.finished ? 0.0F : kImpossible;
      merged.push_back(std::move(beam));
    }
    group.finished = best_beams(merged, num_beams_);
  }

  float length_factor(int64_t length) const {
    return static_cast<float>(std::pow(static_cast<double>(length), config_.length_penalty));
  }

  // Whether the best running beam may still beat the worst finished one.
  bool can_improve(const Group& group) const {
    const bool to_the_end =
        config_.early_stopping == EarlyStopping::kNever && config_.length_penalty > 0.0;
    const float best =
        group.running.front().score / length_factor(to_the_end ? plan_.max_new_tokens : length_);
    float worst = group.finished.front().score;
    for (const auto& beam : group.finished) {
      worst = std::min(worst, beam.score);
    }
    return std::any_of(group.finished.begin(), group.finished.end(), [&](const Beam& beam) {
      return best > (beam.finished ? worst : kImpossible);
    });
  }

  // All prompts go on until none needs to, as in transformers.
  bool goes_on() const {
    const auto any = [&](const auto& test) {
      return std::any_of(groups_.begin(), groups_.end(), test);
    };
    const bool improvement = any([](const Group& g) { return g.may_improve; });
    const bool open = config_.early_stopping != EarlyStopping::kTrue || any([](const Group& g) {
                        return std::any_of(g.finished.begin(), g.finished.end(),
                                           [](const Beam& b) { return !b.finished; });
                      });
    const bool continuations = any([](const Group& g) { return !g.all_candidates_hit; });
    return improvement && open && continuations;
  }

  at::Tensor feed(at::Device device) {
    std::vector<int64_t> parents, tokens;
    for (const auto& group : groups_) {
      for (const auto& beam : group.running) {
        parents.push_back(beam.parent);
        tokens.push_back(beam.ids.back());
      }
    }
    const at::Tensor both =
        at::stack({at::tensor(parents, at::kLong), at::tensor(tokens, at::kLong)})
            .to(device, /*non_blocking=*/true);
    decoding_.reorder(both[0]);
    processors_.reorder(both[0]);
    processors_.append(both[1]);
    return decoding_.step(both[1]);
  }

  at::Tensor running_scores() const {  // [P * beams, 1] float32 on the host
    std::vector<float> scores;
    for (const auto& group : groups_) {
      for (const auto& beam : group.running) {
        scores.push_back(beam.score);
      }
    }
    return at::tensor(scores, at::kFloat).unsqueeze(1);
  }

  Sequences sequences() const {
    Sequences result;
    for (size_t i = 0; processors_.needs_sequences() && i < groups_.size(); ++i) {
      for (const auto& beam : groups_[i].running) {
        result.push_back(plan_.prompts[i]);
        result.back().insert(result.back().end(), beam.ids.begin(), beam.ids.end());
      }
    }
    return result;
  }

  void collect() {
    for (const auto& group : groups_) {
      for (int64_t k = 0; k < config_.num_return_sequences; ++k) {
        const Beam& beam = group.finished[static_cast<size_t>(k)];
        output_.sequences.push_back(beam.ids);
        output_.beam_scores.push_back(beam.score);
        output_.finish_reasons.push_back(beam.reason);
        output_.decode_tokens += std::max<int64_t>(static_cast<int64_t>(beam.ids.size()) - 1, 0);
      }
    }
  }

  const Plan& plan_;
  const GenerationConfig& config_;
  int64_t num_beams_;
  int64_t num_candidates_;
  StoppingRules rules_;
  Decoding decoding_;
  LogitsProcessors processors_;
  int64_t length_ = 0;  // new tokens so far
  std::vector<Group> groups_;
  GenerateOutput output_;
};

}  // namespace

GenerateOutput beam_search(models::CausalLM& model, const Plan& plan,
                           const GenerationConfig& config, const GenerateHooks& hooks) {
  return BeamSearch(model, plan, config, hooks).run();
}

}  // namespace graft::generation

// Beam search as transformers does it since its vectorised rewrite: running beams and finished ones
// are kept apart, and each step looks at enough continuations to keep num_beams of them alive.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "graft/core/error.h"
#include "graft/generation/decoding.h"

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

// The order that torch.topk gives to equal scores decides which beam lives: use it for every
// choice.
std::vector<int64_t> best_indices(const std::vector<float>& scores, int64_t count) {
  const at::Tensor order = std::get<1>(at::tensor(scores, at::kFloat).topk(count));
  return {order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + count};
}

class BeamSearch {
 public:
  BeamSearch(models::CausalLM& model, const Plan& plan, const GenerationConfig& config,
             const GenerateHooks& hooks)
      : plan_(plan),
        config_(config),
        hooks_(hooks),
        num_beams_(config.num_beams),
        decoding_(model, plan.prompts, config.num_beams, plan.max_new_tokens,
                  config.use_static_cache) {
    const auto num_eos = static_cast<int64_t>(plan.eos_token_ids.size());
    num_candidates_ = std::max<int64_t>(2, 1 + num_eos) * num_beams_;
    for (size_t i = 0; i < plan.prompts.size(); ++i) {
      Group group;
      group.running.assign(static_cast<size_t>(num_beams_), Beam{});
      group.finished.assign(static_cast<size_t>(num_beams_), Beam{});
      group.running.front().score = 0.0F;
      groups_.push_back(std::move(group));
    }
  }

  GenerateOutput run() {
    GenerateOutput output;
    output.prefill_tokens = decoding_.prompt_tokens();
    const auto start = Clock::now();
    at::Tensor logits = decoding_.prefill();
    output.prefill_seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const auto decode_start = Clock::now();
    while (true) {
      advance(logits);
      if (!goes_on()) {
        break;
      }
      logits = feed(logits.device());
    }
    output.decode_seconds = std::chrono::duration<double>(Clock::now() - decode_start).count();
    collect(output);
    return output;
  }

 private:
  struct Group {  // the beams of one prompt
    std::vector<Beam> running;
    std::vector<Beam> finished;
    bool may_improve = true;
    bool all_candidates_hit = false;
  };

  // One step: from logits [B * beams, V] to new running and finished beams.
  void advance(const at::Tensor& logits) {
    check_logits(logits);
    at::Tensor log_probs =
        process(logits.log_softmax(-1), sequences(), length_, plan_.eos_token_ids, config_);
    const int64_t vocab_size = log_probs.size(-1);
    std::vector<float> scores;
    for (const auto& group : groups_) {
      for (const auto& beam : group.running) {
        scores.push_back(beam.score);
      }
    }
    log_probs = log_probs + at::tensor(scores, at::kFloat).to(log_probs.device()).unsqueeze(1);
    const auto [values, indices] =
        log_probs.reshape({static_cast<int64_t>(groups_.size()), -1}).topk(num_candidates_);
    const at::Tensor top_values = values.to(at::kCPU), top_indices = indices.to(at::kCPU);
    ++length_;
    for (size_t i = 0; i < groups_.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      advance_group(groups_[i], row, top_values[row].const_data_ptr<float>(),
                    top_indices[row].const_data_ptr<int64_t>(), vocab_size);
    }
  }

  void advance_group(Group& group, int64_t group_index, const float* values, const int64_t* indices,
                     int64_t vocab_size) {
    std::vector<Beam> candidates;
    for (int64_t k = 0; k < num_candidates_; ++k) {
      const int64_t from = indices[k] / vocab_size;
      Beam beam = group.running[static_cast<size_t>(from)];
      beam.ids.push_back(indices[k] % vocab_size);
      beam.score = values[k];
      beam.parent = group_index * num_beams_ + from;
      beam.reason = finish_reason(beam);
      candidates.push_back(std::move(beam));
    }
    group.all_candidates_hit = std::all_of(candidates.begin(), candidates.end(), [](const Beam& b) {
      return b.reason != FinishReason::kNone;
    });
    update_finished(group, candidates);
    update_running(group, candidates);
    group.may_improve = group.may_improve && can_improve(group);
  }

  void update_running(Group& group, const std::vector<Beam>& candidates) const {
    std::vector<float> scores;
    for (const auto& beam : candidates) {
      scores.push_back(beam.score + (beam.reason != FinishReason::kNone ? kImpossible : 0.0F));
    }
    std::vector<Beam> next;
    for (const int64_t k : best_indices(scores, num_beams_)) {
      next.push_back(candidates[static_cast<size_t>(k)]);
      next.back().score = scores[static_cast<size_t>(k)];
    }
    group.running = std::move(next);
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
      beam.score /=
          std::pow(static_cast<float>(length_), static_cast<float>(config_.length_penalty));
      beam.score += full ? kImpossible : 0.0F;
      beam.score += group.may_improve ? 0.0F : kImpossible;
      beam.score += beam.finished ? 0.0F : kImpossible;
      merged.push_back(std::move(beam));
    }
    std::vector<float> scores;
    for (const auto& beam : merged) {
      scores.push_back(beam.score);
    }
    std::vector<Beam> best;
    for (const int64_t k : best_indices(scores, num_beams_)) {
      best.push_back(merged[static_cast<size_t>(k)]);
    }
    group.finished = std::move(best);
  }

  // Whether the best running beam may still beat the worst finished one.
  bool can_improve(const Group& group) const {
    const bool to_the_end =
        config_.early_stopping == EarlyStopping::kNever && config_.length_penalty > 0.0;
    const auto length = static_cast<float>(to_the_end ? plan_.max_new_tokens : length_);
    const float best =
        group.running.front().score / std::pow(length, static_cast<float>(config_.length_penalty));
    float worst = group.finished.front().score;
    for (const auto& beam : group.finished) {
      worst = std::min(worst, beam.score);
    }
    return std::any_of(group.finished.begin(), group.finished.end(), [&](const Beam& beam) {
      return best > (beam.finished ? worst : kImpossible);
    });
  }

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
    const bool cancelled =
        hooks_.cancel != nullptr && hooks_.cancel->load(std::memory_order_relaxed);
    return improvement && open && continuations && !cancelled;
  }

  at::Tensor feed(at::Device device) {
    std::vector<int64_t> tokens, parents;
    for (const auto& group : groups_) {
      for (const auto& beam : group.running) {
        tokens.push_back(beam.ids.back());
        parents.push_back(beam.parent);
      }
    }
    decoding_.reorder(at::tensor(parents, at::kLong).to(device));
    return decoding_.step(at::tensor(tokens, at::kLong).to(device));
  }

  Sequences sequences() const {
    Sequences result;
    for (size_t i = 0; i < groups_.size(); ++i) {
      for (const auto& beam : groups_[i].running) {
        result.push_back(plan_.prompts[i]);
        result.back().insert(result.back().end(), beam.ids.begin(), beam.ids.end());
      }
    }
    return result;
  }

  FinishReason finish_reason(const Beam& beam) const {
    if (std::find(plan_.eos_token_ids.begin(), plan_.eos_token_ids.end(), beam.ids.back()) !=
        plan_.eos_token_ids.end()) {
      return FinishReason::kEos;
    }
    if (!config_.stop_strings.empty() && ends_with_stop_string(beam)) {
      return FinishReason::kStopString;
    }
    return length_ >= plan_.max_new_tokens ? FinishReason::kLength : FinishReason::kNone;
  }

  bool ends_with_stop_string(const Beam& beam) const {
    const TextDecoder decoder = hooks_.make_decoder();
    std::string text;
    size_t before_last = 0;
    for (const int64_t id : beam.ids) {
      before_last = text.size();
      text += decoder.push(id);
    }
    return std::any_of(config_.stop_strings.begin(), config_.stop_strings.end(),
                       [&](const std::string& stop) {
                         const auto found = text.rfind(stop);
                         return found != std::string::npos && found + stop.size() > before_last;
                       });
  }

  void collect(GenerateOutput& output) const {
    for (const auto& group : groups_) {
      for (int64_t k = 0; k < config_.num_return_sequences; ++k) {
        const Beam& beam = group.finished[static_cast<size_t>(k)].finished
                               ? group.finished[static_cast<size_t>(k)]
                               : group.running[static_cast<size_t>(k)];
        output.sequences.push_back(beam.ids);
        output.beam_scores.push_back(beam.score);
        output.finish_reasons.push_back(beam.finished ? beam.reason : FinishReason::kCancelled);
        output.decode_tokens += static_cast<int64_t>(beam.ids.size()) - 1;
      }
    }
  }

  const Plan& plan_;
  const GenerationConfig& config_;
  const GenerateHooks& hooks_;
  int64_t num_beams_;
  int64_t num_candidates_ = 0;
  int64_t length_ = 0;  // new tokens so far
  Decoding decoding_;
  std::vector<Group> groups_;
};

}  // namespace

GenerateOutput beam_search(models::CausalLM& model, const Plan& plan,
                           const GenerationConfig& config, const GenerateHooks& hooks) {
  return BeamSearch(model, plan, config, hooks).run();
}

}  // namespace graft::generation

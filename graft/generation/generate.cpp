#include "graft/generation/generate.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include <c10/core/InferenceMode.h>

#include "graft/generation/decoding.h"
#include "graft/generation/sampler.h"

namespace graft::generation {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Sequences repeat(const std::vector<std::vector<int64_t>>& prompts, int64_t times) {
  Sequences result;
  for (const auto& prompt : prompts) {
    result.insert(result.end(), static_cast<size_t>(times), prompt);
  }
  return result;
}

// One row of the batch: how far it is, and what reads it as text.
struct Row {
  std::vector<int64_t> generated;
  FinishReason finish = FinishReason::kNone;
  TextDecoder decoder;
  std::optional<StoppingRules::StopSearch> stop_search;
};

// Greedy search and sampling of a batch.
class Generation {
 public:
  Generation(models::CausalLM& model, const Plan& plan, const GenerationConfig& config,
             const GenerateHooks& hooks)
      : config_(config),
        hooks_(hooks),
        rules_(plan.eos_token_ids, plan.max_new_tokens, config, hooks),
        sequences_(repeat(plan.prompts, config.num_return_sequences)),
        decoding_(model, plan, config.num_return_sequences, config),
        processors_(config, plan.eos_token_ids, plan.min_new_tokens, sequences_,
                    model.info().vocab_size, model.device()),
        sampler_(config, decoding_.num_rows(), model.device(),
                 {.logprobs = static_cast<bool>(hooks.on_token), .scores = config.output_scores}),
        runs_ahead_(!model.device().is_cpu() && !processors_.needs_sequences()),
        rows_(sequences_.size()) {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (hooks.on_token && hooks.make_decoder) {
        rows_[i].decoder = hooks.make_decoder();
      }
      if (rules_.has_stop_strings()) {
        rows_[i].stop_search.emplace(rules_.make_stop_search(sequences_[i]));
      }
    }
  }

  GenerateOutput run() {
    auto start = Clock::now();
    output_.prefill_tokens = decoding_.prompt_tokens();
    Choice choice = choose(decoding_.prefill());
    while (true) {
      at::Tensor logits;
      if (runs_ahead_ && num_new_tokens_ > 1 && num_new_tokens_ < rules_.max_new_tokens()) {
        // The device goes on while the host looks at the last tokens; a step too many at the end is
        // thrown away. The first token is not kept waiting for the next step's launches.
        logits = decoding_.step(choice.tokens);
      }
      choice.wait();
      if (num_new_tokens_ == 1) {
        output_.prefill_seconds = seconds_since(start);
        start = Clock::now();
      }
      accept(choice);
      if (all_finished()) {
        break;
      }
      choice = choose(logits.defined() ? logits : decoding_.step(choice.tokens));
    }
    output_.decode_seconds = seconds_since(start);
    decoding_.report_graph(output_);
    for (auto& row : rows_) {
      output_.decode_tokens += static_cast<int64_t>(row.generated.size()) - 1;
      output_.sequences.push_back(std::move(row.generated));
      output_.finish_reasons.push_back(row.finish);
    }
    return std::move(output_);
  }

 private:
  bool all_finished() const {
    return std::all_of(rows_.begin(), rows_.end(),
                       [](const Row& row) { return row.finish != FinishReason::kNone; });
  }

  Choice choose(const at::Tensor& logits) {
    Choice choice = sampler_.choose(logits, processors_, sequences_, num_new_tokens_);
    processors_.append(choice.tokens);
    ++num_new_tokens_;
    return choice;
  }

  // Rows that have ended go through the model until all have: what they give is not looked at.
  void accept(Choice& choice) {
    const int64_t* ids = choice.ids.const_data_ptr<int64_t>();
    const float* logprobs =
        choice.logprobs.defined() ? choice.logprobs.const_data_ptr<float>() : nullptr;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].finish == FinishReason::kNone) {
        accept_token(i, ids[i], logprobs == nullptr ? 0.0 : logprobs[i]);
      }
    }
    if (config_.output_scores) {
      output_.scores.push_back(std::move(choice.scores));
    }
  }

  void accept_token(size_t index, int64_t token, double logprob) {
    Row& row = rows_[index];
    row.generated.push_back(token);
    if (processors_.needs_sequences()) {
      sequences_[index].push_back(token);
    }
    const bool stop_string = row.stop_search && row.stop_search->push(token);
    row.finish = rules_.reason(token, static_cast<int64_t>(row.generated.size()), stop_string);
    if (!hooks_.on_token) {
      return;
    }
    TokenEvent event{static_cast<int64_t>(index), token, logprob, {}, row.finish};
    if (row.decoder.push) {
      event.text = row.decoder.push(token);
    }
    if (row.finish != FinishReason::kNone && row.decoder.finish) {
      event.text += row.decoder.finish();
    }
    hooks_.on_token(event);
  }

  const GenerationConfig& config_;
  const GenerateHooks& hooks_;
  StoppingRules rules_;
  Sequences sequences_;  // prompts; with new tokens only where a processor needs them
  Decoding decoding_;
  LogitsProcessors processors_;
  Sampler sampler_;
  bool runs_ahead_;
  std::vector<Row> rows_;
  int64_t num_new_tokens_ = 0;
  GenerateOutput output_;
};

}  // namespace

std::string graph_refusal(models::CausalLM& model) { return DecodeGraph::refusal(model); }

GenerateOutput generate(models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
                        const GenerationConfig& config, const GenerateHooks& hooks) {
  const Plan plan = make_plan(model, prompts, config, hooks);
  const c10::InferenceMode inference;
  if (config.num_beams > 1) {
    return beam_search(model, plan, config, hooks);
  }
  return Generation(model, plan, config, hooks).run();
}

}  // namespace graft::generation

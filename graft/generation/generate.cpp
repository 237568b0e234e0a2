#include "graft/generation/generate.h"

#include <algorithm>
#include <array>
#include <chrono>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include "graft/generation/decoding.h"

namespace graft::generation {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One row of the batch: what it has written, and whether it has ended.
struct Row {
  std::vector<int64_t> prompt;
  std::vector<int64_t> generated;
  FinishReason finish = FinishReason::kNone;
  TextDecoder decoder;
  std::string text;  // of stop-string search: all text so far
};

// Greedy search and sampling of a batch.
class Sampler {
 public:
  Sampler(models::CausalLM& model, const Plan& plan, const GenerationConfig& config,
          const GenerateHooks& hooks)
      : plan_(plan),
        config_(config),
        hooks_(hooks),
        start_(Clock::now()),
        decoding_(model, plan.prompts, config.num_return_sequences, plan.max_new_tokens,
                  config.use_static_cache) {
    for (const auto& prompt : plan.prompts) {
      for (int64_t i = 0; i < config.num_return_sequences; ++i) {
        rows_.push_back({prompt,
                         {},
                         FinishReason::kNone,
                         hooks.make_decoder ? hooks.make_decoder() : TextDecoder{},
                         {}});
        // A generator of its own per row: a row's text does not depend on the rows beside it.
        generators_.push_back(at::detail::createCPUGenerator(config.seed + rows_.size() - 1));
      }
    }
    pad_ =
        config.pad_token_id.value_or(plan.eos_token_ids.empty() ? 0 : plan.eos_token_ids.front());
  }

  GenerateOutput run() {
    GenerateOutput output;
    output.prefill_tokens = decoding_.prompt_tokens();
    const auto prefill_start = Clock::now();
    at::Tensor logits = decoding_.prefill();
    at::Tensor tokens = choose(logits);
    output.prefill_seconds = seconds_since(prefill_start);
    const auto decode_start = Clock::now();
    while (!all_finished()) {
      tokens = choose(decoding_.step(tokens));
    }
    output.decode_seconds = seconds_since(decode_start);
    for (auto& row : rows_) {
      output.decode_tokens += static_cast<int64_t>(row.generated.size()) - 1;
      output.sequences.push_back(std::move(row.generated));
      output.finish_reasons.push_back(row.finish);
    }
    return output;
  }

 private:
  bool all_finished() const {
    return std::all_of(rows_.begin(), rows_.end(),
                       [](const Row& row) { return row.finish != FinishReason::kNone; });
  }

  bool needs_processing() const {
    return config_.repetition_penalty != 1.0 || config_.no_repeat_ngram_size > 0 ||
           num_new_tokens_ < config_.min_new_tokens;
  }

  at::Tensor processed(const at::Tensor& logits) const {
    if (!needs_processing()) {
      return logits;
    }
    Sequences sequences;
    for (const auto& row : rows_) {
      sequences.push_back(row.prompt);
      sequences.back().insert(sequences.back().end(), row.generated.begin(), row.generated.end());
    }
    return process(logits, sequences, num_new_tokens_, plan_.eos_token_ids, config_);
  }

  // Sampling happens on the CPU with the rows' own generators: the same seed gives the same text
  // everywhere.
  at::Tensor sample(const at::Tensor& scores) {
    const at::Tensor probabilities = scores.softmax(-1).to(at::kCPU);
    std::vector<at::Tensor> picked;
    for (size_t row = 0; row < rows_.size(); ++row) {
      picked.push_back(
          at::multinomial(probabilities[static_cast<int64_t>(row)], 1, false, generators_[row]));
    }
    return at::cat(picked);
  }

  // Chooses the next token of every row, tells the hooks, and returns what the model is fed next.
  at::Tensor choose(const at::Tensor& logits) {
    check_logits(logits);
    at::Tensor scores = processed(logits);
    at::Tensor tokens;
    if (config_.do_sample) {
      scores = warp(scores, config_);
      tokens = sample(scores);
    } else {
      tokens = scores.argmax(-1).to(at::kCPU);
    }
    at::Tensor logprobs;
    if (hooks_.on_token) {
      logprobs = scores.log_softmax(-1)
                     .gather(-1, tokens.to(scores.device()).unsqueeze(1))
                     .squeeze(1)
                     .to(at::kCPU);
    }
    ++num_new_tokens_;
    auto* chosen = tokens.mutable_data_ptr<int64_t>();
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].finish == FinishReason::kNone) {
        accept(static_cast<int64_t>(row), chosen[row],
               logprobs.defined() ? logprobs[static_cast<int64_t>(row)].item<double>() : 0.0);
      } else {
        chosen[row] = pad_;
      }
    }
    return tokens.to(logits.device());
  }

  void accept(int64_t index, int64_t token, double logprob) {
    Row& row = rows_[static_cast<size_t>(index)];
    row.generated.push_back(token);
    TokenEvent event{index, token, logprob, {}, FinishReason::kNone};
    if (row.decoder.push) {
      event.text = row.decoder.push(token);
      row.text += event.text;
    }
    row.finish = event.finish = finish_reason(row, token, event.text);
    if (event.finish != FinishReason::kNone && row.decoder.finish) {
      event.text += row.decoder.finish();
    }
    if (hooks_.on_token) {
      hooks_.on_token(event);
    }
  }

  FinishReason finish_reason(const Row& row, int64_t token, const std::string& piece) const {
    if (std::find(plan_.eos_token_ids.begin(), plan_.eos_token_ids.end(), token) !=
        plan_.eos_token_ids.end()) {
      return FinishReason::kEos;
    }
    for (const auto& stop : config_.stop_strings) {
      // Only text that is new can complete the string: look where it may begin.
      const size_t from =
          row.text.size() - std::min(row.text.size(), piece.size() + stop.size() - 1);
      if (!piece.empty() && row.text.find(stop, from) != std::string::npos) {
        return FinishReason::kStopString;
      }
    }
    if (static_cast<int64_t>(row.generated.size()) >= plan_.max_new_tokens) {
      return FinishReason::kLength;
    }
    if (hooks_.cancel != nullptr && hooks_.cancel->load(std::memory_order_relaxed)) {
      return FinishReason::kCancelled;
    }
    return config_.max_time_seconds && seconds_since(start_) > *config_.max_time_seconds
               ? FinishReason::kTime
               : FinishReason::kNone;
  }

  const Plan& plan_;
  const GenerationConfig& config_;
  const GenerateHooks& hooks_;
  Clock::time_point start_;
  Decoding decoding_;
  std::vector<Row> rows_;
  std::vector<at::Generator> generators_;
  int64_t pad_ = 0;
  int64_t num_new_tokens_ = 0;
};

}  // namespace

std::string_view name(FinishReason reason) {
  constexpr std::array<std::string_view, 6> kNames = {"none",        "length",    "eos",
                                                      "stop_string", "cancelled", "time"};
  return kNames[static_cast<size_t>(reason)];
}

GenerateOutput generate(models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
                        const GenerationConfig& config, const GenerateHooks& hooks) {
  const Plan plan = make_plan(model, prompts, config, hooks);
  const c10::InferenceMode inference;
  if (config.num_beams > 1) {
    return beam_search(model, plan, config, hooks);
  }
  return Sampler(model, plan, config, hooks).run();
}

}  // namespace graft::generation

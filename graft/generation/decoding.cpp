#include "graft/generation/decoding.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::generation {

namespace {

void check_prompt(const std::vector<int64_t>& prompt, size_t row, int64_t vocab_size) {
  if (prompt.empty()) {
    throw InvalidArgument(
        "generation", "empty-prompt",
        fmt::format(
            "prompt {}: expected at least one token, got none, and the model has no bos token",
            row));
  }
  for (const int64_t id : prompt) {
    if (id < 0 || id >= vocab_size) {
      throw InvalidArgument(
          "generation", "vocabulary",
          fmt::format("prompt {}: expected ids from 0 to {}, got {}", row, vocab_size - 1, id));
    }
  }
}

}  // namespace

Plan make_plan(const models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
               const GenerationConfig& config, const GenerateHooks& hooks) {
  config.validate();
  const auto& info = model.info();
  Plan plan{prompts, config.eos_token_ids.empty() ? info.eos_token_ids : config.eos_token_ids, 0};
  if (prompts.empty()) {
    throw InvalidArgument("generation", "empty-prompt", "prompts: expected at least one, got none");
  }
  size_t longest = 0;
  for (size_t row = 0; row < plan.prompts.size(); ++row) {
    if (plan.prompts[row].empty() && info.bos_token_id >= 0) {
      plan.prompts[row] = {info.bos_token_id};
    }
    check_prompt(plan.prompts[row], row, info.vocab_size);
    longest = std::max(longest, plan.prompts[row].size());
  }
  const auto prompt_tokens = static_cast<int64_t>(longest);
  plan.max_new_tokens = config.max_new_tokens.value_or(config.max_length - prompt_tokens);
  const int64_t limit = info.max_position_embeddings;
  if (plan.max_new_tokens <= 0 || (limit > 0 && prompt_tokens + plan.max_new_tokens > limit)) {
    throw InvalidArgument(
        "generation", "context",
        fmt::format("expected prompt and new tokens within {}, got {} + {}",
                    plan.max_new_tokens <= 0 ? fmt::format("max_length {}", config.max_length)
                                             : fmt::format("the model's {} positions", limit),
                    prompt_tokens, plan.max_new_tokens),
        "shorten the prompt or set max_new_tokens");
  }
  if (!config.stop_strings.empty() && !hooks.make_decoder) {
    throw InvalidArgument("generation", "stop-strings",
                          "stop_strings: expected a tokenizer's decoder in the hooks, got none");
  }
  if (config.num_beams > 1 && hooks.on_token) {
    throw InvalidArgument(
        "generation", "streaming-beams",
        "on_token: expected one beam, since beams change their past, got several");
  }
  if (config.ignore_eos) {
    plan.eos_token_ids.clear();
  }
  return plan;
}

void check_logits(const at::Tensor& logits) {
  // The maximum of a row is NaN when any element is; -inf is a legal ban, +inf is not.
  if (!at::isfinite(logits.amax(-1)).all().item<bool>()) {
    throw DeviceError("generation", "nan-logits", "logits: expected numbers, got NaN or infinity",
                      "try float32; if kernels are on, compare with --kernels off");
  }
}

Decoding::Decoding(models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
                   int64_t rows_per_prompt, int64_t max_new_tokens, bool use_static_cache)
    : model_(model), num_rows_(static_cast<int64_t>(prompts.size()) * rows_per_prompt) {
  size_t longest = 0, shortest = SIZE_MAX;
  for (const auto& prompt : prompts) {
    longest = std::max(longest, prompt.size());
    shortest = std::min(shortest, prompt.size());
    prompt_tokens_ += static_cast<int64_t>(prompt.size());
  }
  const auto width = static_cast<int64_t>(longest);
  const int64_t pad = std::max<int64_t>(model.info().pad_token_id, 0);
  at::Tensor ids = at::full({static_cast<int64_t>(prompts.size()), width}, pad, at::kLong);
  at::Tensor mask = at::zeros_like(ids);
  for (size_t row = 0; row < prompts.size(); ++row) {
    const auto length = static_cast<int64_t>(prompts[row].size());
    ids[static_cast<int64_t>(row)]
        .narrow(0, width - length, length)
        .copy_(at::tensor(prompts[row], at::kLong));
    mask[static_cast<int64_t>(row)].narrow(0, width - length, length).fill_(1);
  }
  ids_ = ids.repeat_interleave(rows_per_prompt, 0).to(model.device());
  if (shortest != longest) {
    mask_ = mask.repeat_interleave(rows_per_prompt, 0).to(model.device());
  }
  cache_ = model.make_cache(num_rows_, use_static_cache ? width + max_new_tokens : 0);
}

at::Tensor Decoding::forward(const at::Tensor& ids, const at::Tensor& position_ids) {
  const at::Tensor logits = model_.forward({.input_ids = ids,
                                            .attention_mask = mask_,
                                            .position_ids = position_ids,
                                            .cache = cache_.get(),
                                            .logits_to_keep = 1});
  return logits.select(1, -1).to(at::kFloat);
}

at::Tensor Decoding::prefill() {
  at::Tensor positions;
  if (mask_.defined()) {
    // Padded places get position 0, which the mask hides.
    positions = (mask_.cumsum(-1) - 1).clamp_min(0);
    next_positions_ = positions.narrow(1, positions.size(1) - 1, 1) + 1;
  }
  return forward(ids_, positions);
}

at::Tensor Decoding::step(const at::Tensor& tokens) {
  at::Tensor positions;
  if (mask_.defined()) {
    mask_ = at::cat({mask_, at::ones({num_rows_, 1}, mask_.options())}, 1);
    positions = next_positions_;
    next_positions_ = positions + 1;
  }
  return forward(tokens.unsqueeze(1), positions);
}

void Decoding::reorder(const at::Tensor& indices) {
  cache_->reorder(indices);
  if (mask_.defined()) {
    mask_ = mask_.index_select(0, indices);
    next_positions_ = next_positions_.index_select(0, indices);
  }
}

}  // namespace graft::generation

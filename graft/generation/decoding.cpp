#include "graft/generation/decoding.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"

namespace graft::generation {

namespace {

// transformers' length when neither max_new_tokens nor max_length is set.
constexpr int64_t kDefaultNewTokens = 20;

void check_ids(const std::vector<int64_t>& prompt, size_t row, int64_t vocab_size) {
  for (const int64_t id : prompt) {
    if (id < 0 || id >= vocab_size) {
      throw InvalidArgument(
          "generation", "vocabulary",
          fmt::format("prompt {}: expected ids from 0 to {}, got {}", row, vocab_size - 1, id));
    }
  }
}

// Rows that are to be continued: an empty one begins with the bos token.
std::vector<std::vector<int64_t>> complete_prompts(const models::CausalLMInfo& info,
                                                   const std::vector<std::vector<int64_t>>& prompts,
                                                   const GenerationConfig& config) {
  if (prompts.empty()) {
    throw InvalidArgument("generation", "empty-prompt", "prompts: expected at least one, got none");
  }
  const int64_t bos = config.bos_token_id.value_or(info.bos_token_id);
  auto result = prompts;
  for (size_t row = 0; row < result.size(); ++row) {
    if (result[row].empty() && bos >= 0) {
      result[row] = {bos};
    }
    if (result[row].empty()) {
      throw InvalidArgument(
          "generation", "empty-prompt",
          fmt::format("prompt {}: expected at least one token, since the model has no bos token, "
                      "got none",
                      row));
    }
    check_ids(result[row], row, info.vocab_size);
  }
  return result;
}

int64_t choose_max_new_tokens(const GenerationConfig& config, int64_t width, int64_t limit) {
  if (!config.max_new_tokens && config.max_length && *config.max_length <= width) {
    throw InvalidArgument(
        "generation", "context",
        fmt::format("max_length: expected more than the prompt's {} tokens, got {}", width,
                    *config.max_length),
        "set max_new_tokens, which counts new tokens alone");
  }
  const int64_t space = limit > 0 ? limit - width : INT64_MAX;
  const int64_t wanted = config.max_new_tokens ? *config.max_new_tokens
                         : config.max_length
                             ? *config.max_length - width
                             : std::max<int64_t>(1, std::min(kDefaultNewTokens, space));
  if (wanted > space) {
    throw InvalidArgument(
        "generation", "context",
        fmt::format("prompt and new tokens: expected at most max_position_embeddings {}, got "
                    "{} + {} = {}",
                    limit, width, wanted, width + wanted),
        "shorten the prompt or lower max_new_tokens");
  }
  return wanted;
}

void check_hooks(const GenerationConfig& config, const GenerateHooks& hooks) {
  if (!config.stop_strings.empty() && !hooks.make_decoder && !hooks.make_stop_decoder) {
    throw InvalidArgument("generation", "stop-strings",
                          "stop_strings: expected a tokenizer's decoder in the hooks, got none");
  }
  if (config.num_beams > 1 && hooks.on_token) {
    throw InvalidArgument("generation", "streaming-beams",
                          fmt::format("on_token: expected num_beams 1, since beams change their "
                                      "past, got {}",
                                      config.num_beams));
  }
}

// New tokens below which a capture costs more than it saves: it takes about as long as three steps.
constexpr int64_t kLeastGraphTokens = 8;

std::string why_no_graph(models::CausalLM& model, const Plan& plan, const GenerationConfig& config) {
  if (!config.use_cache || !config.use_static_cache) {
    return "the cache is dynamic: only a static one keeps its place";
  }
  if (config.disable_compile) {
    return "disable_compile is set";
  }
  if (plan.max_new_tokens < kLeastGraphTokens) {
    return fmt::format("fewer than {} new tokens do not pay for a capture", kLeastGraphTokens);
  }
  return DecodeGraph::refusal(model);
}

}  // namespace

Plan make_plan(const models::CausalLM& model, const std::vector<std::vector<int64_t>>& prompts,
               const GenerationConfig& config, const GenerateHooks& hooks) {
  config.validate();
  check_hooks(config, hooks);
  const auto& info = model.info();
  Plan plan;
  plan.prompts = complete_prompts(info, prompts, config);
  for (const auto& prompt : plan.prompts) {
    plan.width = std::max(plan.width, static_cast<int64_t>(prompt.size()));
  }
  plan.max_new_tokens = choose_max_new_tokens(config, plan.width, info.max_position_embeddings);
  plan.min_new_tokens = std::max(config.min_new_tokens, config.min_length - plan.width);
  if (!config.ignore_eos) {
    plan.eos_token_ids = config.eos_token_ids.empty() ? info.eos_token_ids : config.eos_token_ids;
  }
  const int64_t candidates =
      std::max<int64_t>(2, 1 + static_cast<int64_t>(plan.eos_token_ids.size()));
  if (config.num_beams > 1 && candidates > info.vocab_size) {
    throw InvalidArgument(
        "generation", "vocabulary",
        fmt::format("eos_token_id: expected fewer than the vocabulary's {} ids with beams, got {}",
                    info.vocab_size, plan.eos_token_ids.size()));
  }
  return plan;
}

Decoding::Decoding(models::CausalLM& model, const Plan& plan, int64_t rows_per_prompt,
                   const GenerationConfig& config)
    : model_(model),
      num_rows_(static_cast<int64_t>(plan.prompts.size()) * rows_per_prompt),
      length_(plan.width),
      switch_length_(model.info().rope_switch_length) {
  place_prompts(plan, rows_per_prompt,
                std::max<int64_t>(config.pad_token_id.value_or(model.info().pad_token_id), 0));
  if (config.use_cache) {
    // The last token is never fed.
    static_length_ = config.use_static_cache ? plan.width + plan.max_new_tokens : 0;
    cache_ = make_cache();
  }
  graph_refusal_ = why_no_graph(model, plan, config);
}

std::unique_ptr<nn::KvCache> Decoding::make_cache() const {
  return model_.make_cache(num_rows_, static_length_);
}

void Decoding::place_prompts(const Plan& plan, int64_t rows_per_prompt, int64_t pad) {
  const auto num_prompts = static_cast<int64_t>(plan.prompts.size());
  at::Tensor ids =
      at::full({num_prompts, plan.width}, pad < model_.info().vocab_size ? pad : 0, at::kLong);
  at::Tensor mask = at::ones({num_prompts, plan.width + plan.max_new_tokens}, at::kLong);
  bool padded = false;
  for (int64_t row = 0; row < num_prompts; ++row) {
    const auto& prompt = plan.prompts[static_cast<size_t>(row)];
    const auto length = static_cast<int64_t>(prompt.size());
    ids[row].narrow(0, plan.width - length, length).copy_(at::tensor(prompt, at::kLong));
    mask[row].narrow(0, 0, plan.width - length).zero_();
    padded = padded || length < plan.width;
    prompt_tokens_ += length;
  }
  ids_ = ids.repeat_interleave(rows_per_prompt, 0).to(model_.device());
  if (padded) {
    mask_ = mask.repeat_interleave(rows_per_prompt, 0).to(model_.device());
  }
}

at::Tensor Decoding::forward(const at::Tensor& ids, const at::Tensor& position_ids) {
  const at::Tensor mask = mask_.defined() ? mask_.narrow(1, 0, length_) : at::Tensor{};
  const at::Tensor logits = model_.forward({.input_ids = ids,
                                            .attention_mask = mask,
                                            .position_ids = position_ids,
                                            .cache = cache_.get(),
                                            .logits_to_keep = 1});
  return last_logits(logits, /*copy=*/false);
}

at::Tensor Decoding::last_logits(const at::Tensor& logits, bool copy) const {
  if (logits.dim() != 3 || logits.size(0) != num_rows_ || logits.size(1) < 1) {
    throw InternalError("generation", "logits-shape",
                        fmt::format("logits: expected [{}, 1, V], got {}", num_rows_,
                                    fmt::join(logits.sizes(), ", ")));
  }
  return logits.select(1, -1).to(at::kFloat, /*non_blocking=*/false, copy);
}

at::Tensor Decoding::graph_step(const at::Tensor& tokens) {
  if (graph_ == nullptr) {
    graph_ = std::make_unique<DecodeGraph>(model_, *cache_, mask_);
  }
  ++length_;
  // The next step overwrites what this one gives.
  return last_logits(graph_->step(tokens), /*copy=*/true);
}

void Decoding::report_graph(GenerateOutput& output) const {
  output.used_graph = graph_ != nullptr && graph_->captured();
  output.graph_refusal = graph_refusal_;
  if (graph_refusal_.empty() && !output.used_graph) {
    output.graph_refusal = graph_ == nullptr || graph_->failure().empty()
                               ? "the text ended before the second step"
                               : graph_->failure();
  }
}

at::Tensor Decoding::prefill() {
  at::Tensor positions;
  if (mask_.defined()) {
    // Padded places get position 0; the mask hides them.
    positions = (mask_.narrow(1, 0, length_).cumsum(-1) - 1).clamp_min(0);
    next_positions_ = positions.narrow(1, length_ - 1, 1) + 1;
  }
  return forward(ids_, positions);
}

at::Tensor Decoding::step(const at::Tensor& tokens) {
  if (graph_refusal_.empty()) {
    return graph_step(tokens);
  }
  const bool anew = cache_ == nullptr || length_ == switch_length_;
  if (keeps_ids()) {
    ids_ = at::cat({ids_, tokens.unsqueeze(1)}, 1);
  }
  ++length_;
  if (anew) {
    cache_ = cache_ != nullptr ? make_cache() : nullptr;
    return prefill();
  }
  at::Tensor positions;
  if (mask_.defined()) {
    positions = next_positions_;
    next_positions_ = positions + 1;
  }
  return forward(tokens.unsqueeze(1), positions);
}

void Decoding::reorder(const at::Tensor& indices) {
  if (keeps_ids()) {
    ids_ = ids_.index_select(0, indices);
  }
  if (cache_ != nullptr) {
    cache_->reorder(indices);
  }
  if (mask_.defined()) {
    mask_ = mask_.index_select(0, indices);
    next_positions_ = next_positions_.index_select(0, indices);
  }
}

}  // namespace graft::generation

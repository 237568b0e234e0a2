#include "graft/generation/logits_processors.h"

#include <algorithm>
#include <limits>

namespace graft::generation {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

at::Tensor to_device(const std::vector<int64_t>& ids, at::Device device) {
  return at::tensor(ids, at::kLong).to(device, /*non_blocking=*/true);
}

// Puts a mask made in sorted order back into vocabulary order, and applies it.
at::Tensor mask_sorted(const at::Tensor& logits, const at::Tensor& sorted_remove,
                       const at::Tensor& order) {
  return logits.masked_fill(sorted_remove.scatter(1, order, sorted_remove), kMinusInfinity);
}

// Tokens that followed the row's last n-1 tokens before.
void find_banned(const std::vector<int64_t>& ids, int64_t ngram_size, int64_t offset,
                 std::vector<int64_t>& banned) {
  const auto prefix = static_cast<size_t>(ngram_size - 1);
  if (ids.size() <= prefix) {
    return;
  }
  const auto suffix = ids.end() - static_cast<ptrdiff_t>(prefix);
  for (size_t start = 0; start + prefix < ids.size(); ++start) {
    if (std::equal(suffix, ids.end(), ids.begin() + static_cast<ptrdiff_t>(start))) {
      banned.push_back(offset + ids[start + prefix]);
    }
  }
}

}  // namespace

at::Tensor repetition_penalty(const at::Tensor& logits, const at::Tensor& seen, double penalty) {
  const at::Tensor penalized = at::where(logits < 0, logits * penalty, logits / penalty);
  return at::where(seen, penalized, logits);
}

at::Tensor no_repeat_ngram(const at::Tensor& logits, const Sequences& sequences,
                           int64_t ngram_size) {
  std::vector<int64_t> banned;
  for (size_t row = 0; row < sequences.size(); ++row) {
    find_banned(sequences[row], ngram_size, static_cast<int64_t>(row) * logits.size(-1), banned);
  }
  if (banned.empty()) {
    return logits;
  }
  return logits.reshape({-1})
      .index_fill(0, to_device(banned, logits.device()), kMinusInfinity)
      .view_as(logits);
}

at::Tensor suppress(const at::Tensor& logits, const at::Tensor& token_ids) {
  return logits.index_fill(1, token_ids, kMinusInfinity);
}

at::Tensor temperature(const at::Tensor& logits, double value) { return logits / value; }

at::Tensor top_k(const at::Tensor& logits, int64_t k, int64_t keep) {
  const int64_t kept = std::min(std::max(k, keep), logits.size(-1));
  const at::Tensor smallest = std::get<0>(logits.topk(kept)).narrow(-1, kept - 1, 1);
  return logits.masked_fill(logits < smallest, kMinusInfinity);
}

at::Tensor top_p(const at::Tensor& logits, double p, int64_t keep) {
  const auto [sorted, order] = logits.sort(-1, /*descending=*/false);
  at::Tensor remove = sorted.softmax(-1).cumsum(-1) <= 1.0 - p;
  const int64_t kept = std::min(keep, remove.size(-1));
  remove.narrow(-1, remove.size(-1) - kept, kept).fill_(false);
  return mask_sorted(logits, remove, order);
}

at::Tensor min_p(const at::Tensor& logits, double value, int64_t keep) {
  const at::Tensor probabilities = logits.softmax(-1);
  at::Tensor remove = probabilities < value * probabilities.amax(-1, true);
  if (keep > 1) {  // the most likely token always stays
    const int64_t kept = std::min(keep, remove.size(-1));
    remove.scatter_(-1, std::get<1>(probabilities.topk(kept)), false);
  }
  return logits.masked_fill(remove, kMinusInfinity);
}

at::Tensor typical_p(const at::Tensor& logits, double p, int64_t keep) {
  const at::Tensor log_probabilities = logits.log_softmax(-1);
  const at::Tensor entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, true);
  const at::Tensor distance = (-log_probabilities - entropy).abs();
  const auto [sorted, order] = distance.sort(-1, /*descending=*/false);
  const at::Tensor mass = logits.gather(-1, order).softmax(-1).cumsum(-1);
  const at::Tensor last = (mass < p).sum(-1, true).clamp_max(mass.size(-1) - 1);
  at::Tensor remove = sorted > sorted.gather(-1, last);
  remove.narrow(-1, 0, std::min(keep, remove.size(-1))).fill_(false);
  return mask_sorted(logits, remove, order);
}

at::Tensor warp(const at::Tensor& logits, const GenerationConfig& config, int64_t keep) {
  at::Tensor out = logits;
  if (config.temperature != 1.0) {
    out = temperature(out, config.temperature);
  }
  if (config.top_k > 0) {
    out = top_k(out, config.top_k, keep);
  }
  if (config.top_p < 1.0) {
    out = top_p(out, config.top_p, keep);
  }
  if (config.min_p) {
    out = min_p(out, *config.min_p, keep);
  }
  if (config.typical_p < 1.0) {
    out = typical_p(out, config.typical_p, keep);
  }
  return out;
}

LogitsProcessors::LogitsProcessors(const GenerationConfig& config,
                                   std::vector<int64_t> eos_token_ids, int64_t min_new_tokens,
                                   const Sequences& prompts, int64_t vocab_size, at::Device device)
    : penalty_(config.repetition_penalty),
      ngram_size_(config.no_repeat_ngram_size),
      min_new_tokens_(eos_token_ids.empty() ? 0 : min_new_tokens) {
  if (penalty_ != 1.0) {
    const auto num_rows = static_cast<int64_t>(prompts.size());
    at::Tensor seen = at::zeros({num_rows, vocab_size}, at::kBool);
    for (int64_t row = 0; row < num_rows; ++row) {
      seen[row].index_fill_(0, at::tensor(prompts[static_cast<size_t>(row)], at::kLong), true);
    }
    seen_ = seen.to(device);
  }
  if (min_new_tokens_ > 0) {
    // An id outside the vocabulary cannot be generated.
    std::erase_if(eos_token_ids, [&](int64_t id) { return id < 0 || id >= vocab_size; });
    eos_ = to_device(eos_token_ids, device);
  }
}

at::Tensor LogitsProcessors::process(const at::Tensor& logits, const Sequences& sequences,
                                     int64_t num_new_tokens) const {
  at::Tensor out = logits;
  if (penalty_ != 1.0) {
    out = repetition_penalty(out, seen_, penalty_);
  }
  if (ngram_size_ > 0) {
    out = no_repeat_ngram(out, sequences, ngram_size_);
  }
  if (num_new_tokens < min_new_tokens_) {
    out = suppress(out, eos_);
  }
  return out;
}

void LogitsProcessors::append(const at::Tensor& tokens) {
  if (seen_.defined()) {
    seen_.scatter_(1, tokens.unsqueeze(1), true);
  }
}

void LogitsProcessors::reorder(const at::Tensor& indices) {
  if (seen_.defined()) {
    seen_ = seen_.index_select(0, indices);
  }
}

}  // namespace graft::generation

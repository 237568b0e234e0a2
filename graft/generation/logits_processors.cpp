#include "graft/generation/logits_processors.h"

#include <algorithm>
#include <limits>

namespace graft::generation {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

at::Tensor to_device(const std::vector<int64_t>& ids, const at::Tensor& like) {
  return at::tensor(ids, at::TensorOptions().dtype(at::kLong)).to(like.device());
}

// Puts a mask made in sorted order back into vocabulary order, and applies it.
at::Tensor mask_sorted(const at::Tensor& logits, const at::Tensor& sorted_remove,
                       const at::Tensor& order) {
  return logits.masked_fill(sorted_remove.scatter(1, order, sorted_remove), kMinusInfinity);
}

}  // namespace

at::Tensor repetition_penalty(const at::Tensor& logits, const Sequences& sequences,
                              double penalty) {
  at::Tensor out = logits.clone();
  for (size_t row = 0; row < sequences.size(); ++row) {
    if (sequences[row].empty()) {
      continue;
    }
    const at::Tensor ids = to_device(sequences[row], logits);
    const at::Tensor seen = logits[static_cast<int64_t>(row)].index_select(0, ids);
    out[static_cast<int64_t>(row)].index_put_({ids},
                                              at::where(seen < 0, seen * penalty, seen / penalty));
  }
  return out;
}

at::Tensor no_repeat_ngram(const at::Tensor& logits, const Sequences& sequences,
                           int64_t ngram_size) {
  at::Tensor out = logits.clone();
  const auto prefix = static_cast<size_t>(ngram_size - 1);
  for (size_t row = 0; row < sequences.size(); ++row) {
    const auto& ids = sequences[row];
    std::vector<int64_t> banned;
    for (size_t start = 0; ids.size() > prefix && start + prefix < ids.size(); ++start) {
      if (std::equal(ids.end() - static_cast<ptrdiff_t>(prefix), ids.end(),
                     ids.begin() + static_cast<ptrdiff_t>(start))) {
        banned.push_back(ids[start + prefix]);
      }
    }
    if (!banned.empty()) {
      out[static_cast<int64_t>(row)].index_fill_(0, to_device(banned, logits), kMinusInfinity);
    }
  }
  return out;
}

at::Tensor suppress(const at::Tensor& logits, const std::vector<int64_t>& token_ids) {
  return token_ids.empty() ? logits
                           : logits.index_fill(1, to_device(token_ids, logits), kMinusInfinity);
}

at::Tensor temperature(const at::Tensor& logits, double value) { return logits / value; }

at::Tensor top_k(const at::Tensor& logits, int64_t k) {
  const int64_t kept = std::min(k, logits.size(-1));
  const at::Tensor smallest = std::get<0>(logits.topk(kept)).narrow(-1, kept - 1, 1);
  return logits.masked_fill(logits < smallest, kMinusInfinity);
}

at::Tensor top_p(const at::Tensor& logits, double p) {
  const auto [sorted, order] = logits.sort(-1, /*descending=*/false);
  at::Tensor remove = sorted.softmax(-1).cumsum(-1) <= 1.0 - p;
  remove.narrow(-1, remove.size(-1) - 1, 1).fill_(false);
  return mask_sorted(logits, remove, order);
}

at::Tensor min_p(const at::Tensor& logits, double value) {
  const at::Tensor probabilities = logits.softmax(-1);
  return logits.masked_fill(probabilities < value * probabilities.amax(-1, true), kMinusInfinity);
}

at::Tensor typical_p(const at::Tensor& logits, double p) {
  const at::Tensor log_probabilities = logits.log_softmax(-1),
                   probabilities = log_probabilities.exp();
  const at::Tensor entropy = -at::nan_to_num(log_probabilities * probabilities, 0.0).sum(-1, true);
  const at::Tensor distance = (-log_probabilities - entropy).abs();
  const auto [sorted, order] = distance.sort(-1, /*descending=*/false);
  const at::Tensor mass = logits.gather(-1, order).softmax(-1).cumsum(-1);
  const at::Tensor last = (mass < p).sum(-1, true).clamp_max(mass.size(-1) - 1);
  at::Tensor remove = sorted > sorted.gather(-1, last);
  remove.narrow(-1, 0, 1).fill_(false);
  return mask_sorted(logits, remove, order);
}

at::Tensor process(const at::Tensor& logits, const Sequences& sequences, int64_t num_new_tokens,
                   const std::vector<int64_t>& eos_token_ids, const GenerationConfig& config) {
  at::Tensor out = logits;
  if (config.repetition_penalty != 1.0) {
    out = repetition_penalty(out, sequences, config.repetition_penalty);
  }
  if (config.no_repeat_ngram_size > 0) {
    out = no_repeat_ngram(out, sequences, config.no_repeat_ngram_size);
  }
  if (num_new_tokens < config.min_new_tokens) {
    out = suppress(out, eos_token_ids);
  }
  return out;
}

at::Tensor warp(const at::Tensor& logits, const GenerationConfig& config) {
  at::Tensor out = logits;
  if (config.temperature != 1.0) {
    out = temperature(out, config.temperature);
  }
  if (config.top_k > 0) {
    out = top_k(out, config.top_k);
  }
  if (config.top_p < 1.0) {
    out = top_p(out, config.top_p);
  }
  if (config.min_p) {
    out = min_p(out, *config.min_p);
  }
  if (config.typical_p < 1.0) {
    out = typical_p(out, config.typical_p);
  }
  return out;
}

}  // namespace graft::generation

// Sampling on the host: a handful of candidates instead of passes over the whole vocabulary.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "graft/generation/sampler.h"

namespace graft::generation {

namespace {

// The k-th largest score. A heap of the k best so far: most scores lose against its smallest.
float kth_largest(const float* scores, int64_t size, int64_t k) {
  std::vector<float> heap(scores, scores + k);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  for (int64_t i = k; i < size; ++i) {
    if (scores[i] > heap.front()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = scores[i];
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  return heap.front();
}

std::vector<double> softmax(const std::vector<Candidate>& candidates) {
  float largest = -std::numeric_limits<float>::infinity();
  for (const auto& candidate : candidates) {
    largest = std::max(largest, candidate.score);
  }
  std::vector<double> result(candidates.size());
  double sum = 0.0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    sum += result[i] = std::exp(static_cast<double>(candidates[i].score) - largest);
  }
  for (double& value : result) {
    value /= sum;
  }
  return result;
}

// Indices of `keys` from the smallest to the largest.
std::vector<size_t> sorted_order(const std::vector<double>& keys) {
  std::vector<size_t> order(keys.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return keys[a] < keys[b]; });
  return order;
}

void keep_marked(std::vector<Candidate>& candidates, const std::vector<bool>& keep) {
  size_t out = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (keep[i]) {
      candidates[out++] = candidates[i];
    }
  }
  candidates.resize(out);
}

void keep_top_p(std::vector<Candidate>& candidates, double p) {
  const auto probabilities = softmax(candidates);
  const auto order = sorted_order(probabilities);
  std::vector<bool> keep(candidates.size(), true);
  double mass = 0.0;
  for (size_t i = 0; i + 1 < order.size(); ++i) {
    mass += probabilities[order[i]];
    keep[order[i]] = mass > 1.0 - p;
  }
  keep_marked(candidates, keep);
}

void keep_min_p(std::vector<Candidate>& candidates, double value) {
  const auto probabilities = softmax(candidates);
  const double bound = value * *std::max_element(probabilities.begin(), probabilities.end());
  std::vector<bool> keep(candidates.size());
  std::transform(probabilities.begin(), probabilities.end(), keep.begin(),
                 [&](double probability) { return probability >= bound; });
  keep_marked(candidates, keep);
}

void keep_typical_p(std::vector<Candidate>& candidates, double p) {
  const auto probabilities = softmax(candidates);
  double entropy = 0.0;
  for (const double probability : probabilities) {
    entropy -= probability > 0.0 ? probability * std::log(probability) : 0.0;
  }
  std::vector<double> distance(candidates.size());
  std::transform(probabilities.begin(), probabilities.end(), distance.begin(),
                 [&](double probability) { return std::abs(-std::log(probability) - entropy); });
  const auto order = sorted_order(distance);
  size_t last = 0;
  double mass = probabilities[order[0]];
  while (mass < p && last + 1 < order.size()) {
    mass += probabilities[order[++last]];
  }
  std::vector<bool> keep(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    keep[i] = distance[i] <= distance[order[last]];
  }
  keep[order[0]] = true;
  keep_marked(candidates, keep);
}

}  // namespace

Largest find_largest(const float* values, int64_t size) {
  // Sixteen running maxima, which the compiler keeps in vector registers; the index is looked for
  // afterwards, inside the one block that holds the largest.
  constexpr int64_t kLanes = 16, kBlock = 1024;
  Largest best{0, -std::numeric_limits<float>::infinity()};
  bool has_nan = false;
  for (int64_t start = 0; start < size; start += kBlock) {
    const float* block = values + start;
    const int64_t length = std::min(kBlock, size - start);
    std::array<float, kLanes> lanes;
    lanes.fill(-std::numeric_limits<float>::infinity());
    int unordered = 0;
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float value = block[i + lane];
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
        unordered |= static_cast<int>(value != value);
      }
    }
    for (; i < length; ++i) {
      lanes[0] = std::max(lanes[0], block[i]);
      unordered |= static_cast<int>(std::isnan(block[i]));
    }
    has_nan = has_nan || unordered != 0;
    const float largest = *std::max_element(lanes.begin(), lanes.end());
    if (largest > best.value) {
      best = {start + (std::find(block, block + length, largest) - block), largest};
    }
  }
  if (has_nan) {
    const float* found = std::find_if(values, values + size, [](float v) { return std::isnan(v); });
    return {found - values, *found};
  }
  return best;
}

std::vector<Candidate> warped_candidates(const float* scores, int64_t vocab_size,
                                         const GenerationConfig& config) {
  const auto temperature = static_cast<float>(config.temperature);
  // Dividing by the temperature keeps the order but may round two scores to the same one.
  const float bound =
      kth_largest(scores, vocab_size, std::min(config.top_k, vocab_size)) / temperature;
  std::vector<Candidate> candidates;
  for (int64_t id = 0; id < vocab_size; ++id) {
    const float score = scores[id] / temperature;
    if (score >= bound && score > -std::numeric_limits<float>::infinity()) {
      candidates.push_back({id, score});
    }
  }
  if (config.top_p < 1.0 && !candidates.empty()) {
    keep_top_p(candidates, config.top_p);
  }
  if (config.min_p && !candidates.empty()) {
    keep_min_p(candidates, *config.min_p);
  }
  if (config.typical_p < 1.0 && !candidates.empty()) {
    keep_typical_p(candidates, config.typical_p);
  }
  return candidates;
}

size_t draw_candidate(const std::vector<Candidate>& candidates, double u, double* logprob) {
  const auto probabilities = softmax(candidates);
  size_t chosen = candidates.size() - 1;
  double mass = 0.0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    mass += probabilities[i];
    if (u < mass && probabilities[i] > 0.0) {
      chosen = i;
      break;
    }
  }
  if (logprob != nullptr) {
    *logprob = std::log(probabilities[chosen]);
  }
  return chosen;
}

}  // namespace graft::generation
